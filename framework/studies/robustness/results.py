"""Compute the numbers of the report from the outcomes of the attacks."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.framework.studies.robustness.attacking import Outcome
from secateur.framework.studies.robustness.points import Points, class_rounds

#: two-sided 95 % quantile of the normal distribution
Z = 1.959963984540054


@dataclass
class Assessment:
    """Results of all attacks on one network.

    Attributes:
        name: Name of the network.
        points: The attacked images.
        clean: Predicted classes without an attack, int64 (N,) on the CPU.
        outcomes: Result of each attack.
        sanity: Signs of masked gradients, see `check_masking`.
        shown: Indices of the points for figures, in the order of `to_show`.
    """

    name: str
    points: Points
    clean: Tensor
    outcomes: list[Outcome]
    sanity: dict[str, Any]
    shown: list[int]


def wilson(hits: int, total: int) -> list[float]:
    """Compute the 95 % Wilson score interval of a share (doi:10.1080/01621459.1927.10502953), inside [0, 1]."""
    if total == 0:
        return [0.0, 1.0]
    share, extra = hits / total, Z * Z / total
    middle = share + extra / 2
    half = Z * math.sqrt(share * (1 - share) / total + extra / (4 * total))
    low, high = (middle - half) / (1 + extra), (middle + half) / (1 + extra)
    return [0.0 if hits == 0 else low, 1.0 if hits == total else high]


def summary(assessment: Assessment) -> dict[str, Any]:
    """Return all results of one network as values of JSON. Robust: correct with and without the attack."""
    outcomes, right = assessment.outcomes, assessment.clean == assessment.points.targets.cpu()
    hits, total = int(right.sum()), len(right)
    worst = {}
    for norm in dict.fromkeys(outcome.attack.norm for outcome in outcomes):
        attacks = [outcome for outcome in outcomes if outcome.attack.norm == norm]
        broken = torch.stack([outcome.broken for outcome in attacks]).any(dim=0)
        names = [outcome.attack.name for outcome in attacks]
        worst[norm] = {"attacks": names, **_curve(attacks[0].epsilons, broken)}
    return {
        "samples": total,
        "misclassified": total - hits,
        "clean_accuracy": hits / total,
        "clean_interval": wilson(hits, total),
        "attacks": {outcome.attack.name: _attack(outcome, right) for outcome in outcomes},
        "worst_case": worst,
        "sanity": assessment.sanity,
    }


def _attack(outcome: Outcome, right: Tensor) -> dict[str, Any]:
    attack = outcome.attack
    result: dict[str, Any] = {
        "norm": attack.norm,
        "kind": "minimal perturbation" if attack.minimal else "within epsilon",
        "settings": outcome.settings,
        **_curve(outcome.epsilons, outcome.broken),
    }
    if attack.minimal:
        distances = outcome.distance[right]
        median = statistics.median(distances.tolist()) if len(distances) else math.inf
        result["median_perturbation"] = median if math.isfinite(median) else None
        result["adversarials_found"] = int(distances.isfinite().sum())
    return result


def _curve(epsilons: Sequence[float], broken: Tensor) -> dict[str, Any]:
    total = broken.shape[1]
    robust = (~broken).sum(dim=1).tolist()
    return {
        "epsilons": list(epsilons),
        "robust": robust,
        "robust_accuracy": [hits / total for hits in robust],
        "interval": [wilson(hits, total) for hits in robust],
    }


def networks_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of the network, and of the compared one if there is one."""
    return [results, *([results["compared"]] if "compared" in results else [])]


def to_show(clean: Tensor, targets: Tensor, count: int) -> list[int]:
    """Select up to `count` correctly classified points: the first of each class, then the second, ..."""
    right = (clean == targets).nonzero().flatten().cpu()
    shown: list[int] = right[class_rounds(targets.cpu()[right]).argsort(stable=True)][:count].tolist()
    return shown
