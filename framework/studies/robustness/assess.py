"""Run several attacks on one network, and compute the numbers of the report from their outcomes."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.framework.network.preserve import preserved_state
from secateur.framework.settings.attacks import Attack
from secateur.framework.studies.robustness.attacking import Effort, Outcome, run_attack
from secateur.framework.studies.robustness.points import PixelModel, Points, class_rounds, predictions
from secateur.framework.studies.robustness.sanity import check_masking
from secateur.framework.training.tester import Network
from secateur.utils.errors import RunError
from secateur.utils.progress import Track, no_bar

#: two-sided 95 % quantile of the normal distribution
Z = 1.959963984540054
#: largest number of points whose adversarial images are stored for the figures of examples
KEPT = 64


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


def assess(
    network: Network,
    points: Points,
    attacks: Sequence[Attack],
    epsilons: Mapping[str, Sequence[float]],
    effort: Effort,
    *,
    seed: int,
    track: Track = no_bar,
) -> Assessment:
    """Attack `points` with each of `attacks` at the epsilons of its norm, and look for signs of masked gradients.

    Every attack starts from the same random state, so that its result does not depend on the other attacks. The
    network and its gradients are not changed.

    Args:
        network: The network and the normalisation of its inputs.
        points: Images and labels to attack.
        attacks: The attacks, in order.
        epsilons: Norm -> largest perturbations, ascending.
        effort: Steps, restarts and batch size.
        seed: Seed of each attack.
        track: Shows the progress.

    Raises:
        RunError: If the network has a single class.
    """
    with preserved_state(network.model):
        network.model.requires_grad_(False)  # attacks need no gradients of these: half the cost
        model = PixelModel(network.model, network.mean, network.std)
        with torch.no_grad():
            if model(points.pixels[:1]).shape[1] < 2:
                raise RunError(f"{network.name} has a single class and cannot be attacked")
        clean = predictions(model, points.pixels, effort.batch_size)
        right = clean == points.targets
        shown = to_show(clean, points.targets, KEPT)
        outcomes = []
        for attack in attacks:
            torch.manual_seed(seed)
            values = epsilons[attack.norm]
            outcomes.append(run_attack(attack, model, points, right, values, effort, show=shown, track=track))
        torch.manual_seed(seed)
        sanity = check_masking(model, points, right.cpu(), outcomes, effort, track)
    return Assessment(network.name, points, clean.cpu(), outcomes, sanity, shown)


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
