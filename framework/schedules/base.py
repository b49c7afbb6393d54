"""When to prune, and down to which sparsity: before, during or after training.

A schedule is pure: from the number of epochs and the limit it says, for each moment, which rising targets are
due. Moments are -1 (before the first epoch) and e (the end of epoch e, 0-based).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

BEFORE_TRAINING = -1
#: pruning steps of the iterative criterions: the original's five `snip_steps`, the first one and the limit
ITERATIVE = 7


#: how the targets of several steps lie: each one half as far from the limit as the last, or each one keeping the
#: same share of what the last one left
SPACINGS = ("halving", "exponential")


def targets(limit: float, steps: int, spacing: str = "halving") -> list[float]:
    """Rising sparsities of `steps` steps, the last of which is `limit`.

    "halving" closes in on it: k_i = limit - (limit - start) * 0.5**i, and then the limit. The start is 0.5, as in
    the original; for limits up to 0.5, where that would overshoot, half the limit. `targets(0.98, 7)` is .5 .74
    .86 .92 .95 .965 .98. "exponential" keeps (1 - limit) ** (i / steps) after step i, as SynFlow does.
    """
    if spacing == "exponential":
        return [1 - (1 - limit) ** (step / steps) for step in range(1, steps)] + [limit]
    start = 0.5 if limit > 0.5 else limit / 2
    return [limit - (limit - start) * 0.5**step for step in range(steps - 1)] + [limit]


def even_targets(limit: float) -> list[float]:
    """Rising sparsities in steps of 0.05 from 0.01 on, and then the limit: `even_targets(0.93)` has 20 of them."""
    return [percent / 100 for percent in range(1, 100, 5) if percent / 100 < limit - 1e-9] + [limit]


def spread(due: Sequence[float], moments: Sequence[int]) -> dict[int, list[float]]:
    """One target at each moment until all are met; where moments are too few several at one, evenly.

    `spread([1, 2, 3], [4, 6])` is {4: [1], 6: [2, 3]}.
    """
    moments = moments[: len(due)]
    ends = [len(due) * number // len(moments) for number in range(len(moments) + 1)]
    return {moment: list(due[ends[at] : ends[at + 1]]) for at, moment in enumerate(moments)}


class Schedule(ABC):
    """Which moments of a run prune, and how far."""

    @abstractmethod
    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        """Moment -> the targets due then, for a run of `epochs`. Raises UsageError if no moment fits."""

    def one_shot(self, limit: float) -> list[float]:
        """All targets one after the other, for a call outside a training run."""
        return targets(limit, getattr(self, "steps", 1), getattr(self, "spacing", "halving"))


def _check(schedule: Schedule, **least: int) -> None:
    spacing = getattr(schedule, "spacing", "halving")
    if spacing not in SPACINGS:
        raise UsageError(f"{type(schedule).__name__}: {unknown('spacing', str(spacing), SPACINGS)}")
    for name, low in least.items():
        value = getattr(schedule, name)
        if value is not None and value < low:
            raise UsageError(f"{type(schedule).__name__}: {name} must be at least {low}, got {value}")


@dataclass(frozen=True)
class Never(Schedule):
    """Nothing is pruned."""

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        return {}

    def one_shot(self, limit: float) -> list[float]:
        return []


@dataclass(frozen=True)
class Before(Schedule):
    """Before the first epoch, in `steps` steps back to back; each one scores what the last one left."""

    steps: int = 1
    spacing: str = "halving"

    def __post_init__(self) -> None:
        _check(self, steps=1)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        return {BEFORE_TRAINING: self.one_shot(limit)}


@dataclass(frozen=True)
class During(Schedule):
    """At the end of epochs delay + freq, delay + 2 * freq, ..., one step each.

    Where `epochs` leave room for fewer than `steps` events, some of them take several steps, each of which scores
    what the last one left: a single step over a large share would judge by scores of a far larger network. Of
    such a short run the last third is for training (from two epochs on: the last one at least), unless there are
    no other events. With `even` the targets are those of `even_targets`, whatever `steps` is.
    """

    delay: int = 0
    freq: int = 1
    steps: int = ITERATIVE
    spacing: str = "halving"
    even: bool = False

    def __post_init__(self) -> None:
        _check(self, delay=0, freq=1, steps=1)

    def one_shot(self, limit: float) -> list[float]:
        return even_targets(limit) if self.even else super().one_shot(limit)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        moments = list(range(self.delay + self.freq, epochs - 1, self.freq))
        if not moments and self.delay + self.freq == epochs - 1:
            moments = [epochs - 1]
        if not moments:
            raise UsageError(
                f"nothing would be pruned: with prune_delay {self.delay} and prune_freq {self.freq} the first "
                f"pruning comes after {self.delay + self.freq + 1} epochs, and epochs is {epochs}"
            )
        due = self.one_shot(limit)
        if len(moments) < len(due):
            moments = [moment for moment in moments if epochs - 1 - moment >= epochs // 3] or moments
        return spread(due, moments)


@dataclass(frozen=True)
class After(Schedule):
    """Once the network is trained, in one step; the last eighth of the epochs (at least one, where there are
    two) then tunes what is left. `delay` and `freq` set the epoch as in `During`."""

    delay: int | None = None
    freq: int | None = None
    steps: int = 1
    spacing: str = "halving"

    def __post_init__(self) -> None:
        _check(self, delay=0, freq=1, steps=1)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        if self.delay is not None or self.freq is not None:
            moment = (self.delay or 0) + (self.freq or 1)
            if moment >= epochs:
                raise UsageError(
                    f"nothing would be pruned: prune_delay and prune_freq name the end of epoch {moment}, "
                    f"and epochs is {epochs} (the first is 0)"
                )
        else:
            moment = epochs - 1 - (max(1, round(epochs / 8)) if epochs > 1 else 0)
        return {moment: self.one_shot(limit)}


def chosen(own: Schedule, when: str | None, delay: int | None, freq: int | None, snip_steps: int) -> Schedule:
    """A criterion's own schedule, changed by what the user asked for.

    `when` is before, during, after or None for the criterion's own moment. A criterion of several steps takes
    `snip_steps` + 2 of them; one of a single step stays so, whatever `snip_steps` is.
    """
    several = getattr(own, "steps", 1) > 1
    steps = snip_steps + 2 if several else 1
    spacing = getattr(own, "spacing", "halving")
    when = when or type(own).__name__.lower()
    if when == "before":
        return Before(steps, spacing)
    if when == "during":
        during = own if isinstance(own, During) else During()
        return During(
            during.delay if delay is None else delay,
            during.freq if freq is None else freq,
            steps if several else ITERATIVE,
            spacing,
            during.even,
        )
    if when == "after":
        after = own if isinstance(own, After) else After()
        return After(after.delay if delay is None else delay, after.freq if freq is None else freq, steps, spacing)
    return own
