"""Run one attack on one network: the points that it breaks, and the distances of the adversarial images.

foolbox searches, and every adversarial image is verified here in a separate forward pass: a class other than the
true one, or outputs that are NaN, pixels in [0, 1], and a distance of at most epsilon. A smallest perturbation
that is larger than epsilon is clipped to epsilon and tried again. Points that are misclassified without an attack
count as broken at every epsilon and are not attacked.
"""

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.framework.settings.attacks import NEEDS_FOOLBOX, Attack
from secateur.framework.studies.robustness.points import PixelModel, Points, distances, predictions
from secateur.utils.errors import RunError, UsageError
from secateur.utils.progress import Track, no_bar
from secateur.utils.suggest import unknown
from secateur.utils.tensors import wide

#: tolerance of a distance of epsilon in float32: relative to epsilon, and absolute
RELATIVE, ABSOLUTE = 1e-5, 1e-6
#: steps of DeepFool, and draws of noise, for all images of a batch, before broken images are removed from it
FIRST = 10


@dataclass(frozen=True)
class Effort:
    """Effort of an attack.

    Attributes:
        steps: Steps of one search; None for the default of the attack.
        rounds: Steps of the binary search around it; None for the default of the attack.
        restarts: Restarts of random attacks.
        batch_size: Images that are attacked together.
        options: Options of foolbox's class, which take precedence over all others.
    """

    steps: int | None = None
    rounds: int | None = None
    restarts: int = 1
    batch_size: int = 128
    options: Mapping[str, Any] | None = None


@dataclass
class Outcome:
    """Result of one attack on N points at E epsilons.

    Attributes:
        attack: The attack.
        settings: Options of foolbox's class.
        epsilons: Largest perturbations, ascending.
        broken: bool (E, N), misclassified without an attack or within epsilon.
        distance: float64 (N,), distance of the nearest adversarial image; 0 for points that are misclassified
            without an attack, infinite if none was found.
        adversarials: Index of a point -> nearest adversarial image, for the points to be shown.
    """

    attack: Attack
    settings: dict[str, Any]
    epsilons: tuple[float, ...]
    broken: Tensor
    distance: Tensor
    adversarials: dict[int, Tensor]


def settings_of(attack: Attack, effort: Effort) -> dict[str, Any]:
    """Return the options of foolbox's class."""
    options = dict(attack.options)
    if effort.steps is not None and attack.steps:
        if "rel_stepsize" in options:  # the total length of all steps is unchanged
            options["rel_stepsize"] *= options[attack.steps] / effort.steps
        options[attack.steps] = effort.steps
    if effort.rounds is not None and attack.rounds:
        options[attack.rounds] = effort.rounds
    return options | dict(effort.options or {})


def make_attack(attack: Attack, options: Mapping[str, Any]) -> Any:
    """Create foolbox's attack; raises UsageError for an option that its class does not have."""
    cls = getattr(foolbox().attacks, attack.cls)
    allowed = [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]
    for name in options:
        if name not in allowed:
            known = unknown(f"option of {attack.name}", name, allowed)
            raise UsageError(known if allowed else f"{attack.name} takes no options, got {name!r}")
    return cls(**options)


def foolbox() -> Any:
    """Import foolbox on first use, since the import takes a second."""
    try:
        with warnings.catch_warnings():  # foolbox uses deprecated names of scipy
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module("foolbox")
    except ImportError as error:
        raise RunError(f"{NEEDS_FOOLBOX}: {error}") from error


def run_attack(
    attack: Attack,
    model: PixelModel,
    points: Points,
    right: Tensor,
    epsilons: Sequence[float],
    effort: Effort,
    *,
    show: Sequence[int] = (),
    track: Track = no_bar,
) -> Outcome:
    """Attack the correctly classified points, and verify the adversarial images. The result is on the CPU.

    Args:
        attack: The attack.
        model: The network, with pixels as input.
        points: Images and labels.
        right: bool (N,), the points that are classified correctly.
        epsilons: Largest perturbations, ascending.
        effort: Steps, restarts and batch size.
        show: Indices of the points whose adversarial images are stored.
        track: Shows the progress.
    """
    options = settings_of(attack, effort)
    made, stages = make_attack(attack, options), _stages(attack, options)
    search = _Search(attack, made, model, points, epsilons, effort.batch_size, stages)
    distance = torch.where(right, torch.inf, 0.0).to(wide(right.device))
    broken = (~right).expand(len(epsilons), -1).clone()
    kept: dict[int, Tensor] = {}
    restarts = effort.restarts if attack.random else 1
    limits = [None] if attack.minimal else list(epsilons)
    rounds = [(row, epsilon) for row, epsilon in enumerate(limits) for _ in range(restarts)]
    passes = -(-int(right.sum()) // effort.batch_size) * attack.passes(options)
    with _bar(model, track, attack.name, len(rounds) * passes) as reach:
        for done, (row, epsilon) in enumerate(rounds, 1):
            # a point broken within a smaller epsilon is also broken within a larger one
            left = right if epsilon is None else right & ~broken[row]
            reached, images = search.once(left.nonzero().flatten(), epsilon, show)
            nearer = reached < distance
            distance = torch.where(nearer, reached, distance)
            kept |= {at: image for at, image in images.items() if bool(nearer[at])}
            if epsilon is not None:
                broken[row:] |= reached.isfinite()
            reach(done * passes)
    if attack.minimal:
        broken = torch.stack([distance <= _limit(epsilon) for epsilon in epsilons])
    return Outcome(attack, options, tuple(epsilons), broken.cpu(), distance.cpu(), kept)


def _stages(attack: Attack, options: Mapping[str, Any]) -> Sequence[int | None]:
    """Return the steps of each stage: few and then all for DeepFool; draws of noise that sum up to all of them."""
    total = options.get(attack.steps)
    if total is None or total <= FIRST or not ("DeepFool" in attack.name or attack.steps == "repeats"):
        return [total]
    if attack.steps != "repeats":
        return [FIRST, total]
    stages = [FIRST]
    while (done := sum(stages)) < total:
        stages.append(min(2 * done, total - done))
    return stages


@dataclass
class _Search:
    """Runs foolbox's attack on batches of the points, and verifies each result."""

    attack: Attack
    made: Any
    model: PixelModel
    points: Points
    epsilons: Sequence[float]
    batch_size: int
    stages: Sequence[int | None]

    def once(self, left: Tensor, epsilon: float | None, show: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Attack the points `left` (int64) once.

        Returns the distances of the adversarial images, float64 (N,), infinite if there is none, and the images to
        be shown by their index.
        """
        nearest = torch.full((len(self.points),), torch.inf, dtype=wide(left.device), device=left.device)
        images: dict[int, Tensor] = {}
        for chunk in left.split(self.batch_size) if len(left) else ():
            part = self.points.at(chunk)
            adversarial = self._staged(part, epsilon)
            apart = self._checked(part, adversarial, epsilon)
            if epsilon is None:
                self._nearer(part, adversarial, apart)
            nearest[chunk] = apart
            images |= {at: adversarial[row].cpu() for row, at in enumerate(chunk.tolist()) if at in show}
        return nearest, images

    def _nearer(self, part: Points, adversarial: Tensor, distance: Tensor) -> None:
        """Replace perturbations, in place, by those clipped to an epsilon, where these succeed too."""
        for epsilon in self.epsilons:
            remaining = (distance > _limit(epsilon)).nonzero().flatten()
            if len(remaining):
                some = part.at(remaining)
                clipped = self.made.distance.clip_perturbation(some.pixels, adversarial[remaining], epsilon)
                clipped = clipped.clamp(0, 1)
                apart = self._checked(some, clipped, epsilon)
                good = apart.isfinite()
                adversarial[remaining[good]], distance[remaining[good]] = clipped[good], apart[good]

    def _staged(self, part: Points, epsilon: float | None) -> Tensor:
        """Attack a batch in stages, each with the images that are not yet broken.

        The images of a batch are independent in DeepFool, and so are the draws of repeated noise, so that each
        result is that of an attack on one image.
        """
        adversarial, remaining = part.pixels.clone(), torch.arange(len(part), device=part.pixels.device)
        for stage, effort in enumerate(self.stages):
            if stage:
                classes = predictions(self.model, adversarial[remaining], self.batch_size)
                remaining = remaining[classes == part.targets[remaining]]
            if not len(remaining):
                break
            if effort is not None:
                setattr(self.made, self.attack.steps, effort)
            adversarial[remaining] = self._attacked(part.at(remaining), epsilon)
        return adversarial

    def _attacked(self, part: Points, epsilon: float | None) -> Tensor:
        wrapped = foolbox().PyTorchModel(self.model, bounds=(0, 1), device=part.pixels.device)
        with torch.enable_grad():
            _, clipped, _ = self.made(wrapped, part.pixels, part.targets, epsilons=epsilon)
        adversarial: Tensor = clipped.detach()
        return adversarial.clamp(0, 1)  # NaN is kept, and rejected by `_checked`

    def _checked(self, part: Points, adversarial: Tensor, epsilon: float | None) -> Tensor:
        """Return the distance of each adversarial image, infinite for images that are not adversarial."""
        classes = predictions(self.model, adversarial, self.batch_size)
        finite = adversarial.flatten(1).isfinite().all(dim=1)
        apart = distances(adversarial, part.pixels, self.attack.norm)
        good = (classes != part.targets) & finite
        if epsilon is not None:
            good &= apart <= _limit(epsilon)
        return torch.where(good, apart, torch.inf)


def _limit(epsilon: float) -> float:
    return epsilon * (1 + RELATIVE) + ABSOLUTE


@contextmanager
def _bar(model: PixelModel, track: Track, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Advance a progress bar with every forward pass of the model; `reach(n)` advances it to about n."""
    with closing(done for done in track(range(total), title, total)) as ticks:

        def step(*_: Any) -> None:
            next(ticks, None)

        def reach(wanted: int) -> None:
            next((done for done in ticks if done >= wanted), None)

        with model.register_forward_hook(step):
            yield reach
