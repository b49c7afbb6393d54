"""Check for masked gradients, under which robust accuracy is meaningless.

The signs are those of arXiv:1802.00420 and arXiv:1902.06705: vanishing gradients, random noise that breaks more
points than the gradient does, and a larger epsilon or more steps that break fewer points.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.framework.studies.robustness.attacking import Effort, Outcome, run_attack
from secateur.framework.studies.robustness.points import ORDERS, PixelModel, Points, balanced, predictions
from secateur.utils.progress import Track, no_bar

#: number of correctly classified points to probe, and of random perturbations of each
PROBES, DRAWS = 100, 10
#: largest share of points with a gradient of zero that is not reported
FEW_ZEROS = 0.01


def check_masking(
    model: PixelModel,
    points: Points,
    right: Tensor,
    outcomes: Sequence[Outcome],
    effort: Effort,
    track: Track = no_bar,
) -> dict[str, Any]:
    """Look for signs of masked gradients.

    Args:
        model: The attacked network.
        points: The points of the outcomes.
        right: bool (N,) on the CPU, the points that are classified correctly.
        outcomes: Results of the attacks on the points.
        effort: Effort of the attacks that are repeated.
        track: Shows the progress.

    Returns:
        `signs`, a list of sentences that is empty if there is no sign; `zero_gradients`, the share of probed
        points with a gradient of zero; and `probed`, their number.
    """
    if not right.any():
        return {"signs": [], "zero_gradients": 0.0, "probed": 0}
    places = right.nonzero().flatten()
    probe = places[balanced(points.targets.cpu()[places], PROBES, seed=0)]
    probed = points.at(probe)
    zero = zero_gradients(model, probed, effort.batch_size)
    signs = []
    if zero > FEW_ZEROS:
        signs.append(f"the gradient is zero on {100 * zero:.3g} % of the points, where gradient attacks fail")
    by_gradient = [outcome for outcome in outcomes if outcome.attack.gradient]
    signs += _random_beats_gradient(model, probed, probe, by_gradient, effort)
    signs += _weaker_beats_stronger(outcomes, len(places))
    signs += _larger_is_weaker(model, probed, by_gradient, effort, track)
    return {"signs": signs, "zero_gradients": zero, "probed": len(probe)}


def zero_gradients(model: PixelModel, points: Points, batch_size: int) -> float:
    """Return the share of points at which the gradient of the cross-entropy by the image is zero or not finite."""
    zeros = torch.zeros((), dtype=torch.int64, device=points.pixels.device)
    for pixels, targets in zip(points.pixels.split(batch_size), points.targets.split(batch_size), strict=True):
        with torch.enable_grad():
            inputs = pixels.clone().requires_grad_()
            loss = F.cross_entropy(model(inputs), targets, reduction="sum")
            gradient = torch.autograd.grad(loss, inputs)[0].flatten(1)
        zeros += ((gradient == 0).all(dim=1) | ~gradient.isfinite().all(dim=1)).sum()
    return int(zeros) / len(points)


def _first_excess(epsilons: Sequence[float], counts: Iterable[int], total: int) -> list[tuple[float, int]]:
    """Return the first count that is large enough to be reported, with its epsilon, if there is one."""
    margin = max(2.0, 0.05 * total)
    return list(islice((pair for pair in zip(epsilons, counts, strict=True) if pair[1] >= margin), 1))


def _random_beats_gradient(
    model: PixelModel, probed: Points, probe: Tensor, by_gradient: Sequence[Outcome], effort: Effort
) -> Iterator[str]:
    for outcome in by_gradient:
        attack, broken = outcome.attack, outcome.broken[:, probe].sum(dim=1).tolist()
        more = (
            _broken_by_chance(model, probed, attack.norm, epsilon, effort.batch_size) - count
            for epsilon, count in zip(outcome.epsilons, broken, strict=True)
        )
        for epsilon, count in _first_excess(outcome.epsilons, more, len(probe)):
            start = f"{attack.name}, epsilon {epsilon:.4g}: {DRAWS} random perturbations"
            yield f"{start} break {count} of {len(probe)} points more than the gradient"


def _broken_by_chance(model: PixelModel, points: Points, norm: str, epsilon: float, batch_size: int) -> int:
    """Count the points that any of DRAWS random perturbations of size `epsilon` breaks."""
    broken = torch.zeros(len(points), dtype=torch.bool, device=points.pixels.device)
    for _ in range(DRAWS):
        noise = torch.randn_like(points.pixels)
        if norm == "Linf":
            noise = noise.sign()
        else:
            noise /= torch.linalg.vector_norm(noise, ORDERS[norm], dim=(1, 2, 3), keepdim=True)
        noisy = (points.pixels + epsilon * noise).clamp(0, 1)
        broken |= predictions(model, noisy, batch_size) != points.targets
    return int(broken.sum())


def _weaker_beats_stronger(outcomes: Sequence[Outcome], total: int) -> Iterator[str]:
    """Compare each noise attack with the gradient attacks of its norm, and FGSM with the many steps of LinfPGD."""
    for weak in outcomes:
        if weak.attack.name == "FGSM":
            title, rivals = "LinfPGD", [one for one in outcomes if one.attack.name == "LinfPGD"]
        elif not weak.attack.gradient:
            title = "the gradient attacks"
            rivals = [one for one in outcomes if one.attack.gradient and one.attack.norm == weak.attack.norm]
        else:
            continue
        if rivals:
            best = torch.stack([rival.broken for rival in rivals]).any(dim=0)
            more = (weak.broken.sum(dim=1) - best.sum(dim=1)).tolist()
            for epsilon, count in _first_excess(weak.epsilons, more, total):
                start = f"{weak.attack.name} breaks {count} of {total} points more"
                yield f"{start} than {title} at epsilon {epsilon:.4g}"


def _larger_is_weaker(
    model: PixelModel, probed: Points, by_gradient: Sequence[Outcome], effort: Effort, track: Track
) -> Iterator[str]:
    """Repeat attacks within an epsilon on all points at every epsilon; the outcomes skip points broken earlier."""
    everything = torch.ones(len(probed), dtype=torch.bool, device=probed.pixels.device)
    for attack, epsilons in ((outcome.attack, outcome.epsilons) for outcome in by_gradient):
        if attack.minimal:
            continue
        counts = [
            int(run_attack(attack, model, probed, everything, [epsilon], effort, track=track).broken.sum())
            for epsilon in epsilons
        ]
        lost = [most - count for most, count in zip(accumulate(counts, max), counts, strict=True)]
        for epsilon, fewer in _first_excess(epsilons, lost, len(probed)):
            hint = "; a single step may overshoot" if not attack.steps else ""
            start = f"{attack.name} at epsilon {epsilon:.4g} breaks {fewer} of {len(probed)} points fewer"
            yield f"{start} than at a smaller one{hint}"
