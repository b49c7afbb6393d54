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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.framework.settings.attacks import NEEDS_FOOLBOX, Attack
from secateur.framework.studies.robustness.points import PixelModel, Points, distances, predictions, wide
from secateur.utils.errors import RunError, UsageError
from secateur.utils.progress import Track
from secateur.utils.suggest import unknown

#: tolerance of a distance of epsilon in float32: relative to epsilon, and absolute
RELATIVE, ABSOLUTE = 1e-5, 1e-6
#: draws of noise for all images of a batch, before broken images are removed from it
FIRST_REPEATS = 10


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
    allowed = list(inspect.signature(cls.__init__).parameters)[1:]
    allowed = [name for name in allowed if name not in ("args", "kwargs")]
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
    track: Track | None = None,
) -> Outcome:
    """Attack the correctly classified points, and verify the adversarial images.

    Args:
        attack: The attack.
        model: The network, with pixels as input.
        points: Images and labels.
        right: bool (N,), the points that are classified correctly.
        epsilons: Largest perturbations, ascending.
        effort: Steps, restarts and batch size.
        show: Indices of the points whose adversarial images are stored.
        track: Shows the progress; None shows none.
    """
    options = settings_of(attack, effort)
    search = _Search(attack, make_attack(attack, options), model, points, epsilons, effort.batch_size)
    distance = torch.where(right, torch.inf, 0.0).to(wide(right.device))
    broken = (~right).expand(len(epsilons), -1).clone()
    kept: dict[int, Tensor] = {}
    restarts = effort.restarts if attack.random else 1
    stages = [None] if attack.minimal else list(epsilons)
    rounds = [(row, epsilon) for row, epsilon in enumerate(stages) for _ in range(restarts)]
    batches = -(-int(right.sum()) // effort.batch_size)
    with _bar(model, track, attack.name, len(rounds) * batches * attack.passes(options)) as reach:
        for done, (row, epsilon) in enumerate(rounds, 1):
            # a point broken within a smaller epsilon is also broken within a larger one
            left = right if epsilon is None else right & ~broken[row]
            reached, images = search.once(left.nonzero().flatten(), epsilon, show)
            nearer = reached < distance
            distance = torch.where(nearer, reached, distance)
            kept |= {at: image for at, image in images.items() if bool(nearer[at])}
            if epsilon is not None:
                broken[row:] |= reached.isfinite()
            reach(done * batches * attack.passes(options))
    if attack.minimal:
        broken = torch.stack([distance <= _limit(epsilon) for epsilon in epsilons])
    return Outcome(attack, options, tuple(epsilons), broken, distance, kept)


class _Search:
    """Runs foolbox's attack on batches of the points, and verifies each result."""

    def __init__(
        self, attack: Attack, made: Any, model: PixelModel, points: Points, epsilons: Sequence[float],
        batch_size: int,
    ) -> None:  # fmt: skip
        self._attack, self._made, self._model = attack, made, model
        self._points, self._epsilons, self._batch_size = points, epsilons, batch_size
        device = points.pixels.device
        self._foolbox = foolbox().PyTorchModel(model, bounds=(0, 1), device=device)

    def once(self, left: Tensor, epsilon: float | None, show: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Attack the points `left` (int64) once.

        Returns the distances of the adversarial images, float64 (N,), infinite if there is none, and the images to
        be shown by their index.
        """
        nearest = torch.full((len(self._points),), torch.inf, dtype=wide(left.device), device=left.device)
        images: dict[int, Tensor] = {}
        for chunk in left.split(self._batch_size):
            if not len(chunk):
                continue
            part = self._points.at(chunk)
            adversarial = self._staged(part, epsilon)
            apart = self._checked(part, adversarial, epsilon)
            if epsilon is None:
                self._nearer(part, adversarial, apart)
            nearest[chunk] = apart
            images |= {at: adversarial[row].cpu() for row, at in enumerate(chunk.tolist()) if at in show}
        return nearest, images

    def _nearer(self, part: Points, adversarial: Tensor, distance: Tensor) -> None:
        """Replace perturbations, in place, by those clipped to an epsilon, where these succeed too."""
        for epsilon in self._epsilons:
            remaining = (distance > _limit(epsilon)).nonzero().flatten()
            if len(remaining):
                some = part.at(remaining)
                clipped = self._made.distance.clip_perturbation(some.pixels, adversarial[remaining], epsilon)
                clipped = clipped.clamp(0, 1)
                apart = self._checked(some, clipped, epsilon)
                good = apart.isfinite()
                adversarial[remaining[good]], distance[remaining[good]] = clipped[good], apart[good]

    def _staged(self, part: Points, epsilon: float | None) -> Tensor:
        """Attack a batch; DeepFool and noise first run briefly, then continue with the remaining images only.

        The images of a batch are independent in DeepFool, so each result is that of an attack on one image.
        """
        if getattr(self._made, "repeats", 0) > FIRST_REPEATS:
            return self._repeated(part, epsilon)
        steps = getattr(self._made, "steps", 0)
        if "DeepFool" not in self._attack.name or steps <= 10:
            return self._attacked(part, epsilon)
        self._made.steps = 10
        try:
            adversarial = self._attacked(part, epsilon)
        finally:
            self._made.steps = steps
        remaining = (predictions(self._model, adversarial, self._batch_size) == part.targets).nonzero().flatten()
        if len(remaining):
            adversarial[remaining] = self._attacked(part.at(remaining), epsilon)
        return adversarial

    def _repeated(self, part: Points, epsilon: float | None) -> Tensor:
        """Attack with repeated noise: few draws for all images, then more draws for the images not yet broken.

        Draws are independent, and the first adversarial image is kept: every image is given the full number of
        draws unless it is broken earlier.
        """
        repeats, done = self._made.repeats, 0
        adversarial, remaining = part.pixels.clone(), torch.arange(len(part), device=part.pixels.device)
        try:
            while done < repeats and len(remaining):
                self._made.repeats = min(max(FIRST_REPEATS, 2 * done), repeats - done)
                attacked = self._attacked(part.at(remaining), epsilon)
                adversarial[remaining] = attacked
                done += self._made.repeats
                remaining = remaining[
                    predictions(self._model, attacked, self._batch_size) == part.targets[remaining]
                ]
        finally:
            self._made.repeats = repeats
        return adversarial

    def _attacked(self, part: Points, epsilon: float | None) -> Tensor:
        with torch.enable_grad():
            _, clipped, _ = self._made(self._foolbox, part.pixels, part.targets, epsilons=epsilon)
        adversarial: Tensor = clipped.detach()
        return adversarial.clamp(0, 1)  # NaN is kept, and rejected by `_checked`

    def _checked(self, part: Points, adversarial: Tensor, epsilon: float | None) -> Tensor:
        """Return the distance of each adversarial image, infinite for images that are not adversarial."""
        classes = predictions(self._model, adversarial, self._batch_size)
        finite = adversarial.flatten(1).isfinite().all(dim=1)
        apart = distances(adversarial, part.pixels, self._attack.norm)
        good = (classes != part.targets) & finite
        if epsilon is not None:
            good &= apart <= _limit(epsilon)
        return torch.where(good, apart, torch.inf)


def _limit(epsilon: float) -> float:
    return epsilon * (1 + RELATIVE) + ABSOLUTE


@contextmanager
def _bar(model: PixelModel, track: Track | None, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Advance a progress bar with every forward pass of the model; `reach(n)` advances it to at least n."""
    ticks = iter(track(range(total), title, total) if track is not None and total else ())
    done = 0

    def step(*_: Any) -> None:
        nonlocal done
        if done < total:
            next(ticks, None)
            done += 1

    def reach(wanted: int) -> None:
        while done < min(wanted, total):
            step()

    handle = model.register_forward_hook(step)
    try:
        yield reach
    finally:
        handle.remove()
        if hasattr(ticks, "close"):
            ticks.close()
