"""Check for masked gradients, under which robust accuracy is meaningless.

The signs are those of arXiv:1802.00420 and arXiv:1902.06705: vanishing gradients, random noise that breaks more
points than the gradient does, and a larger epsilon or more steps that break fewer points.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.framework.settings.attacks import Attack
from secateur.framework.studies.robustness.attacking import Effort, Outcome, run_attack
from secateur.framework.studies.robustness.points import PixelModel, Points, balanced, predictions
from secateur.utils.progress import Track

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
    track: Track | None = None,
) -> dict[str, Any]:
    """Look for signs of masked gradients.

    Args:
        model: The attacked network.
        points: The points of the outcomes.
        right: bool (N,), the points that are classified correctly.
        outcomes: Results of the attacks.
        effort: Effort of the attacks that are repeated.
        track: Shows the progress; None shows none.

    Returns:
        `signs`, a list of sentences that is empty if there is no sign; `zero_gradients`, the share of probed
        points with a gradient of zero; and `probed`, their number.
    """
    if not right.any():
        return {"signs": [], "zero_gradients": 0.0, "probed": 0}
    places = right.nonzero().flatten()
    probe = places[balanced(points.targets[places], PROBES, seed=0).to(places.device)]
    zero = zero_gradients(model, points.at(probe), effort.batch_size)
    signs = []
    if zero > FEW_ZEROS:
        signs.append(f"the gradient is zero on {100 * zero:.3g} % of the points, where gradient attacks fail")
    signs += _random_beats_gradient(model, points, probe, outcomes, effort)
    signs += _noise_beats_gradient(outcomes, right)
    signs += _larger_is_weaker(model, points.at(probe), outcomes, effort, track)
    signs += _one_step_beats_many(outcomes, right)
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


def _margin(total: int) -> float:
    """Return the smallest difference in broken points that is reported."""
    return max(2.0, 0.05 * total)


def _random_beats_gradient(
    model: PixelModel, points: Points, probe: Tensor, outcomes: Sequence[Outcome], effort: Effort
) -> list[str]:
    signs = []
    for outcome in outcomes:
        if not outcome.attack.gradient:
            continue
        for epsilon, broken in zip(outcome.epsilons, outcome.broken, strict=True):
            noisy = _broken_by_chance(model, points.at(probe), outcome.attack.norm, epsilon, effort.batch_size)
            more = int(noisy.sum()) - int(broken[probe].sum())
            if more >= _margin(len(probe)):
                signs.append(f"{outcome.attack.name}, epsilon {epsilon:.4g}: {DRAWS} random perturbations break "
                             f"{more} of {len(probe)} points more than the gradient")  # fmt: skip
                break
    return signs


def _broken_by_chance(model: PixelModel, points: Points, norm: str, epsilon: float, batch_size: int) -> Tensor:
    """Return bool (N,): whether any of DRAWS random perturbations of size `epsilon` breaks the point."""
    broken = torch.zeros(len(points), dtype=torch.bool, device=points.pixels.device)
    for _ in range(DRAWS):
        noise = torch.randn_like(points.pixels)
        if norm == "Linf":
            noise = epsilon * noise.sign()
        else:
            order = 2 if norm == "L2" else 1
            size = torch.linalg.vector_norm(noise.flatten(1), order, dim=1)
            noise = epsilon * noise / size.view(-1, *[1] * (noise.dim() - 1))
        noisy = (points.pixels + noise).clamp(0, 1)
        broken |= predictions(model, noisy, batch_size) != points.targets
    return broken


def _noise_beats_gradient(outcomes: Sequence[Outcome], right: Tensor) -> list[str]:
    """Compare each noise attack with the best gradient attack of the same norm."""
    signs = []
    for noise in (outcome for outcome in outcomes if not outcome.attack.gradient):
        rivals = [
            outcome for outcome in outcomes if outcome.attack.gradient and outcome.attack.norm == noise.attack.norm
        ]
        if not rivals:
            continue
        best = torch.stack([outcome.broken for outcome in rivals]).any(dim=0)
        more = (noise.broken & right).sum(dim=1) - (best & right).sum(dim=1)
        signs += _first_excess(noise.attack.name, "the gradient attacks", noise.epsilons, more, right)
    return signs


def _one_step_beats_many(outcomes: Sequence[Outcome], right: Tensor) -> list[str]:
    named = {outcome.attack.name: outcome for outcome in outcomes}
    if not {"FGSM", "LinfPGD"} <= named.keys():
        return []
    fgsm, pgd = named["FGSM"], named["LinfPGD"]
    more = (fgsm.broken & right).sum(dim=1) - (pgd.broken & right).sum(dim=1)
    return _first_excess("FGSM", "LinfPGD", fgsm.epsilons, more, right)


def _first_excess(winner: str, loser: str, epsilons: Sequence[float], more: Tensor, right: Tensor) -> list[str]:
    total = int(right.sum())
    for epsilon, count in zip(epsilons, more.tolist(), strict=True):
        if count >= _margin(total):
            return [f"{winner} breaks {count} of {total} points more than {loser} at epsilon {epsilon:.4g}"]
    return []


def _larger_is_weaker(
    model: PixelModel, points: Points, outcomes: Sequence[Outcome], effort: Effort, track: Track | None
) -> list[str]:
    """Repeat attacks within an epsilon on all points at every epsilon; the outcomes skip points broken earlier."""
    signs = []
    everything = torch.ones(len(points), dtype=torch.bool, device=points.pixels.device)
    for outcome in outcomes:
        attack: Attack = outcome.attack
        if attack.minimal or not attack.gradient:
            continue
        counts = [
            int(run_attack(attack, model, points, everything, [epsilon], effort, track=track).broken.sum())
            for epsilon in outcome.epsilons
        ]
        for at in range(1, len(counts)):
            lost = max(counts[:at]) - counts[at]
            if lost >= _margin(len(points)):
                hint = "; a single step may overshoot" if not attack.steps else ""
                signs.append(f"{attack.name} at epsilon {outcome.epsilons[at]:.4g} breaks {lost} of {len(points)} "
                             f"points fewer than at a smaller one{hint}")  # fmt: skip
                break
    return signs
