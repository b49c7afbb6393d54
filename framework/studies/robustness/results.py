"""Compute the numbers of the report from the outcomes of the attacks."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.framework.studies.robustness.attacking import Outcome
from secateur.framework.studies.robustness.points import Points

#: two-sided 95 % quantile of the normal distribution
Z = 1.959963984540054


@dataclass
class Assessment:
    """Results of all attacks on one network.

    Attributes:
        name: Name of the network.
        points: The attacked images.
        clean: Predicted classes without an attack, int64 (N,).
        outcomes: Result of each attack.
        sanity: Signs of masked gradients, see `check_masking`.
    """

    name: str
    points: Points
    clean: Tensor
    outcomes: list[Outcome]
    sanity: dict[str, Any]

    @property
    def right(self) -> Tensor:
        """Points that are classified correctly without an attack, bool (N,)."""
        return self.clean == self.points.targets


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Compute the 95 % Wilson score interval of a share (doi:10.1080/01621459.1927.10502953), inside [0, 1]."""
    if total == 0:
        return 0.0, 1.0
    share, extra = hits / total, Z * Z / total
    middle = share + extra / 2
    half = Z * math.sqrt(share * (1 - share) / total + extra / (4 * total))
    low, high = (middle - half) / (1 + extra), (middle + half) / (1 + extra)
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)


def worst_case(outcomes: Sequence[Outcome]) -> dict[str, Tensor]:
    """Map each norm to bool (E, N): broken by any attack of that norm within each epsilon."""
    broken: dict[str, Tensor] = {}
    for outcome in outcomes:
        norm = outcome.attack.norm
        broken[norm] = broken[norm] | outcome.broken if norm in broken else outcome.broken
    return broken


def summary(assessment: Assessment) -> dict[str, Any]:
    """Return all results of one network as values of JSON. Robust: correct with and without the attack."""
    right = assessment.right
    hits, total = int(right.sum()), len(right)
    worst = {}
    for norm, broken in worst_case(assessment.outcomes).items():
        attacks = [outcome for outcome in assessment.outcomes if outcome.attack.norm == norm]
        worst[norm] = {
            "attacks": [outcome.attack.name for outcome in attacks],
            **_curve(attacks[0].epsilons, broken),
        }
    return {
        "samples": total,
        "misclassified": total - hits,
        "clean_accuracy": hits / total,
        "clean_interval": list(wilson(hits, total)),
        "attacks": {outcome.attack.name: _attack(outcome, right) for outcome in assessment.outcomes},
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
    robust = [total - int(row.sum()) for row in broken]
    return {
        "epsilons": list(epsilons),
        "robust": robust,
        "robust_accuracy": [hits / total for hits in robust],
        "interval": [list(wilson(hits, total)) for hits in robust],
    }


def on_cpu(outcome: Outcome) -> Outcome:
    """Return a copy with its tensors on the CPU."""
    return Outcome(outcome.attack, outcome.settings, outcome.epsilons, outcome.broken.cpu(),
                   outcome.distance.cpu(), outcome.adversarials)  # fmt: skip


def to_show(clean: Tensor, targets: Tensor, count: int) -> list[int]:
    """Select up to `count` correctly classified points: the first of each class, then the second, ..."""
    right = (clean == targets).nonzero().flatten().cpu()
    labels = targets.cpu()[right]
    seen: dict[int, int] = {}
    rounds = []
    for label in labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        rounds.append(seen[label])
    order = torch.tensor(rounds, dtype=torch.int64).argsort(stable=True)
    return [int(at) for at in right[order][:count]]
