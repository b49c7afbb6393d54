"""Pruning in rounds: an epoch of training and a pruning each, down along exact ratios or given thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.framework.schedules.base import Schedule
from secateur.utils.errors import UsageError


def round_targets(limit: float, rounds: int) -> list[float]:
    """Sparsities after each of so many rounds: 1 - n(1 - p) / (n(1 - p) + k p) for p = `limit`, k = 1 ... n.

    1 / (what is kept) grows by the same amount in each round, and round n leaves exactly 1 - p: with 0.75 in five
    rounds .625, .4545, .3571, .2941 and .25 are kept.
    """
    left = rounds * (1 - limit)
    return [number * limit / (left + number * limit) for number in range(1, rounds)] + [limit]


def shares(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Thresholds as shares: percent where any is above 1. UsageError unless they rise and stay below all."""
    given = ",".join(f"{one:g}" for one in thresholds)
    percent = any(one > 1 for one in thresholds)
    found = tuple(one / 100 for one in thresholds) if percent else tuple(map(float, thresholds))
    if not all(0 <= one < 1 for one in found):
        raise UsageError(f"thresholds {given}: each must be a share in [0, 1) or a percentage in [0, 100)")
    if any(later <= earlier for earlier, later in zip(found, found[1:], strict=False)):
        raise UsageError(f"thresholds {given} must rise: each is the share that is gone after its round")
    return found


@dataclass(frozen=True)
class Rounds(Schedule):
    """Rounds of one epoch of training and one pruning, with a new score each; then what is left is trained.

    The first `warmup` - 1 epochs only train: the epoch of round 1 is the last one of the warm-up. `thresholds` are
    the shares that are gone after each round (percent where any is above 1); then their number is that of the
    rounds and the last of them the limit. Without, the targets are `round_targets`. Lubana and Dick, 2020,
    arXiv:2009.11839.
    """

    n_rounds: int = 5
    warmup: int = 0
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("n_rounds", 1), ("warmup", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise UsageError(f"Rounds: {name} must be a whole number from {low} on, got {value!r}")
        if self.thresholds:
            object.__setattr__(self, "thresholds", shares(self.thresholds))
            object.__setattr__(self, "n_rounds", len(self.thresholds))

    @property
    def first(self) -> int:
        """The epoch of round 1, 0-based; each later round has the next one."""
        return max(0, self.warmup - 1)

    def one_shot(self, limit: float) -> list[float]:
        """All targets one after the other."""
        return list(self.thresholds) or round_targets(limit, self.n_rounds)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        """One target at the end of each round's epoch. UsageError where the epochs are too few for all."""
        needed = self.first + self.n_rounds
        if needed > epochs:
            warm = f" after {self.first} epochs of warm-up" if self.first else ""
            raise UsageError(
                f"{self.n_rounds} rounds of an epoch each{warm} need {needed} epochs, and epochs is {epochs}"
            )
        return {self.first + number: [target] for number, target in enumerate(self.one_shot(limit))}
