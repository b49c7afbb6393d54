"""One attack on one network: which points it breaks, and how near the adversarials are.

foolbox searches; what counts is checked here, in passes of their own: another class than the true one, or outputs
that are no numbers, pixels in [0, 1], and no farther away than epsilon. What an attack for the smallest
perturbation found farther away is tried again at epsilon, on the line to the image. Points that the network gets
wrong as they are count as broken at every epsilon and are not attacked.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.framework.settings.attacks import NEEDS_FOOLBOX, Attack
from secateur.framework.studies.robustness.points import PixelModel, Points, distances, predictions, wide
from secateur.utils.errors import RunError, UsageError
from secateur.utils.suggest import unknown

#: what float32 makes of a distance of exactly epsilon: share of epsilon, and of one pixel
RELATIVE, ABSOLUTE = 1e-5, 1e-6
#: draws of noise for all images of a batch, before those that are done leave it
FIRST_REPEATS = 10
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Effort:
    """How hard to try. None: the attack's own number.

    steps, rounds: of one search, and of the binary search around it. restarts: of random attacks.
    batch_size: images that are attacked together. options: of foolbox's class, over all others.
    """

    steps: int | None = None
    rounds: int | None = None
    restarts: int = 1
    batch_size: int = 128
    options: Mapping[str, Any] | None = None


@dataclass
class Outcome:
    """What one attack did to N points at E epsilons.

    broken: bool (E, N), wrong as they are or made wrong within epsilon. distance: float64 (N,), to the nearest
    adversarial that was found, 0 for points that are wrong as they are, infinite where none was found.
    adversarials: position among the points to the nearest adversarial image, for those to be shown.
    """

    attack: Attack
    settings: dict[str, Any]
    epsilons: tuple[float, ...]
    broken: Tensor
    distance: Tensor
    adversarials: dict[int, Tensor]


def settings_of(attack: Attack, effort: Effort) -> dict[str, Any]:
    """The options for foolbox's class."""
    options = dict(attack.options)
    if effort.steps is not None and attack.steps:
        if "rel_stepsize" in options:  # all steps together go as far as before
            options["rel_stepsize"] *= options[attack.steps] / effort.steps
        options[attack.steps] = effort.steps
    if effort.rounds is not None and attack.rounds:
        options[attack.rounds] = effort.rounds
    return options | dict(effort.options or {})


def make_attack(attack: Attack, options: Mapping[str, Any]) -> Any:
    """foolbox's attack. Raises UsageError for an option its class does not have."""
    cls = getattr(foolbox().attacks, attack.cls)
    allowed = list(inspect.signature(cls.__init__).parameters)[1:]
    allowed = [name for name in allowed if name not in ("args", "kwargs")]
    for name in options:
        if name not in allowed:
            known = unknown(f"option of {attack.name}", name, allowed)
            raise UsageError(known if allowed else f"{attack.name} takes no options, got {name!r}")
    return cls(**options)


def foolbox() -> Any:
    """The library, imported when it is needed: it takes a second."""
    try:
        with warnings.catch_warnings():  # of names of scipy that it should not use any more
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
    """Attack the points that the network gets right (`right`, bool (N,)), and check what was found.

    `epsilons` rise. `show` are the points whose adversarials are kept.
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
            # a point broken within a smaller epsilon is broken within a larger one: it has left
            left = right if epsilon is None else right & ~broken[row]
            found, images = search.once(left.nonzero().flatten(), epsilon, show)
            nearer = found < distance
            distance = torch.where(nearer, found, distance)
            kept |= {at: image for at, image in images.items() if bool(nearer[at])}
            if epsilon is not None:
                broken[row:] |= found.isfinite()
            reach(done * batches * attack.passes(options))
    if attack.minimal:
        broken = torch.stack([distance <= _limit(epsilon) for epsilon in epsilons])
    return Outcome(attack, options, tuple(epsilons), broken, distance, kept)


class _Search:
    """foolbox's attack on parts of the points, each answer checked."""

    def __init__(
        self, attack: Attack, made: Any, model: PixelModel, points: Points, epsilons: Sequence[float],
        batch_size: int,
    ) -> None:  # fmt: skip
        self._attack, self._made, self._model = attack, made, model
        self._points, self._epsilons, self._batch_size = points, epsilons, batch_size
        device = points.pixels.device
        self._foolbox = foolbox().PyTorchModel(model, bounds=(0, 1), device=device)

    def once(self, left: Tensor, epsilon: float | None, show: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """One try at the points `left` (int64): distances of the adversarials, float64 (N,), infinite where there
        is none; and those to be shown, by their places."""
        found = torch.full((len(self._points),), torch.inf, dtype=wide(left.device), device=left.device)
        images: dict[int, Tensor] = {}
        for chunk in left.split(self._batch_size):
            if not len(chunk):
                continue
            part = self._points.at(chunk)
            adversarial = self._staged(part, epsilon)
            apart = self._checked(part, adversarial, epsilon)
            if epsilon is None:
                self._nearer(part, adversarial, apart)
            found[chunk] = apart
            images |= {at: adversarial[row].cpu() for row, at in enumerate(chunk.tolist()) if at in show}
        return found, images

    def _nearer(self, part: Points, adversarial: Tensor, distance: Tensor) -> None:
        """Where as much of a perturbation as fits into an epsilon is enough, take that; changes both in place."""
        for epsilon in self._epsilons:
            rest = (distance > _limit(epsilon)).nonzero().flatten()
            if len(rest):
                some = part.at(rest)
                clipped = self._made.distance.clip_perturbation(some.pixels, adversarial[rest], epsilon)
                clipped = clipped.clamp(0, 1)
                apart = self._checked(some, clipped, epsilon)
                good = apart.isfinite()
                adversarial[rest[good]], distance[rest[good]] = clipped[good], apart[good]

    def _staged(self, part: Points, epsilon: float | None) -> Tensor:
        """DeepFool goes on for all until the last is done: few steps for all, the rest for those not done.

        Its images do not see each other, so each ends where it would have in a batch of its own.
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
        rest = (predictions(self._model, adversarial, self._batch_size) == part.targets).nonzero().flatten()
        if len(rest):
            adversarial[rest] = self._attacked(part.at(rest), epsilon)
        return adversarial

    def _repeated(self, part: Points, epsilon: float | None) -> Tensor:
        """Noise that is drawn again and again: few draws for all, three times as many in all for those not done.

        A draw does not look at the ones before, and the first adversarial is kept: every image gets as many draws
        as in one go, or finds one.
        """
        repeats, done = self._made.repeats, 0
        adversarial, rest = part.pixels.clone(), torch.arange(len(part), device=part.pixels.device)
        try:
            while done < repeats and len(rest):
                self._made.repeats = min(max(FIRST_REPEATS, 2 * done), repeats - done)
                found = self._attacked(part.at(rest), epsilon)
                adversarial[rest] = found
                done += self._made.repeats
                rest = rest[predictions(self._model, found, self._batch_size) == part.targets[rest]]
        finally:
            self._made.repeats = repeats
        return adversarial

    def _attacked(self, part: Points, epsilon: float | None) -> Tensor:
        with torch.enable_grad():
            _, clipped, _ = self._made(self._foolbox, part.pixels, part.targets, epsilons=epsilon)
        found: Tensor = clipped.detach()
        return found.clamp(0, 1)  # NaN stays NaN, and is refused below

    def _checked(self, part: Points, adversarial: Tensor, epsilon: float | None) -> Tensor:
        """The distance of each image that is an adversarial, infinite for what is none."""
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
    """A bar that moves with every forward pass of the model; `reach(n)` moves it to n, where less was needed."""
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
