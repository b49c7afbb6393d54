"""Schedules that prune before, during or after training or in rounds, and the spacing of their targets.

A schedule is a pure function of the number of epochs and the final sparsity: it maps each moment to an ascending
list of targets. Moments are -1 (before the first epoch) and e (the end of epoch e, 0-based).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from secateur.utils.errors import UsageError
from secateur.utils.limits import check_wholes
from secateur.utils.suggest import unknown

BEFORE_TRAINING = -1
#: pruning steps of the iterative criterions: the five `snip_steps` of SNIP-it, the first step and the limit
ITERATIVE = 7


#: spacing of the targets of several steps: each step halves the distance to the limit, or each step keeps the same
#: share of the remaining entries
SPACINGS = ("halving", "exponential")


def targets(limit: float, steps: int, spacing: str = "halving") -> list[float]:
    """Return `steps` ascending sparsities, the last of which is `limit`.

    "halving" approaches the limit by k_i = limit - (limit - start) * 0.5**i. The start is 0.5, as in SNIP-it, or
    half the limit where 0.5 would overshoot it. `targets(0.98, 7)` is .5 .74 .86 .92 .95 .965 .98. "exponential"
    keeps (1 - limit) ** (i / steps) after step i, as SynFlow does.
    """
    if spacing == "exponential":
        return [1 - (1 - limit) ** (step / steps) for step in range(1, steps)] + [limit]
    start = 0.5 if limit > 0.5 else limit / 2
    return [limit - (limit - start) * 0.5**step for step in range(steps - 1)] + [limit]


def even_targets(limit: float) -> list[float]:
    """Return ascending sparsities 0.01, 0.06, 0.11, ... below `limit`, and `limit`; 20 of them for 0.93."""
    return [percent / 100 for percent in range(1, 100, 5) if percent / 100 < limit - 1e-9] + [limit]


def round_targets(limit: float, rounds: int) -> list[float]:
    """Return the sparsity after each of n rounds: 1 - n(1 - p) / (n(1 - p) + k p) for p = `limit`, k = 1 ... n.

    The reciprocal of the kept share grows linearly, and the last round keeps exactly 1 - p: for p = 0.75 and five
    rounds the kept shares are .625, .4545, .3571, .2941 and .25.
    """
    kept = rounds * (1 - limit)
    return [number * limit / (kept + number * limit) for number in range(1, rounds)] + [limit]


def shares(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Convert thresholds to shares; percentages if any exceeds 1. Raises UsageError unless they ascend."""
    given = ",".join(f"{threshold:g}" for threshold in thresholds)
    percent = any(threshold > 1 for threshold in thresholds)
    converted = tuple(threshold / 100 for threshold in thresholds) if percent else tuple(map(float, thresholds))
    if not all(0 <= share < 1 for share in converted):
        raise UsageError(f"thresholds {given}: each must be a share in [0, 1) or a percentage in [0, 100)")
    if any(later <= earlier for earlier, later in zip(converted, converted[1:], strict=False)):
        raise UsageError(f"thresholds {given} must ascend: each is the pruned share after its round")
    return converted


def spread(due: Sequence[float], moments: Sequence[int]) -> dict[int, list[float]]:
    """Assign one target to each moment, or several if there are fewer moments than targets, evenly distributed.

    `spread([1, 2, 3], [4, 6])` is {4: [1], 6: [2, 3]}.
    """
    moments = moments[: len(due)]
    ends = [len(due) * number // len(moments) for number in range(len(moments) + 1)]
    return {moment: list(due[ends[at] : ends[at + 1]]) for at, moment in enumerate(moments)}


class Schedule(ABC):
    """Base class of the schedules, which determine when and how far a run prunes.

    A subclass implements `plan`. Schedules are immutable values without state: the same arguments always give the
    same plan.

    Example:
        >>> from secateur import Before, Schedule
        >>> isinstance(Before(), Schedule)
        True
        >>> Before(steps=3).plan(limit=0.8, epochs=10)  # -1: before the first epoch
        {-1: [0.5, 0.65, 0.8]}
    """

    @abstractmethod
    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        """Return the targets of each moment of a run.

        Args:
            limit: sparsity to reach in the end, in [0, 1).
            epochs: number of epochs of the run.

        Returns:
            Mapping from moment (-1: before the first epoch, e: the end of epoch e, 0-based) to ascending
            sparsities, one per pruning step.

        Raises:
            UsageError: if the run is too short for the schedule.
        """

    def one_shot(self, limit: float) -> list[float]:
        """Return the targets of all steps in order, for a call of `prune` outside a training run.

        Args:
            limit: sparsity to reach in the end, in [0, 1).

        Returns:
            Ascending sparsities, one per pruning step.
        """
        return targets(limit, getattr(self, "steps", 1), getattr(self, "spacing", "halving"))


def _check(schedule: Schedule, **least: int) -> None:
    spacing = getattr(schedule, "spacing", "halving")
    if spacing not in SPACINGS:
        raise UsageError(f"{type(schedule).__name__}: {unknown('spacing', str(spacing), SPACINGS)}")
    check_wholes(schedule, **least)


@dataclass(frozen=True)
class Never(Schedule):
    """Schedule that never prunes.

    Example:
        >>> from secateur import Never
        >>> Never().plan(limit=0.9, epochs=10)
        {}
    """

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        return {}

    def one_shot(self, limit: float) -> list[float]:
        return []


@dataclass(frozen=True)
class Before(Schedule):
    """Schedule that prunes before the first epoch.

    Args:
        steps: number of consecutive pruning steps; each step re-scores the remaining network. At least 1.
        spacing: spacing of the targets of the steps. "halving": each step halves the distance to the final
            sparsity. "exponential": each step keeps the same share of the remaining entries.

    Raises:
        UsageError: if `steps` is below 1 or `spacing` is unknown.

    Example:
        >>> from secateur import Before
        >>> Before(steps=2, spacing="exponential").plan(limit=0.75, epochs=10)
        {-1: [0.5, 0.75]}
    """

    steps: int = 1
    spacing: str = "halving"

    def __post_init__(self) -> None:
        _check(self, steps=1)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        return {BEFORE_TRAINING: self.one_shot(limit)}


@dataclass(frozen=True)
class During(Schedule):
    """Schedule that prunes during training, at the end of epochs delay + freq, delay + 2 * freq, ...

    Each of these epochs ends with one pruning step. If a run is too short for all steps, several steps are taken
    at the end of one epoch, each of which re-scores the remaining network: a single step over a large share would
    use the scores of a much larger network. The last third of such a run (at least the last epoch, if the run has
    two or more) is reserved for training, unless no other epoch is available.

    Args:
        delay: number of epochs before the first interval. At least 0.
        freq: number of epochs between pruning steps. At least 1.
        steps: number of pruning steps. At least 1.
        spacing: spacing of the targets of the steps, "halving" or "exponential"; see `Before`.
        even: use the targets 0.01, 0.06, 0.11, ... up to the final sparsity, regardless of `steps`.

    Raises:
        UsageError: if a number is too small or `spacing` is unknown.

    Example:
        >>> from secateur import During
        >>> During(delay=1, freq=2, steps=3).plan(limit=0.8, epochs=20)
        {3: [0.5], 5: [0.65], 7: [0.8]}
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
                f"nothing would be pruned: with delay {self.delay} and freq {self.freq} the first pruning comes "
                f"after {self.delay + self.freq + 1} epochs, and epochs is {epochs}",
                argument=("delay", "freq"),
            )
        due = self.one_shot(limit)
        if len(moments) < len(due):
            moments = [moment for moment in moments if epochs - 1 - moment >= epochs // 3] or moments
        return spread(due, moments)


@dataclass(frozen=True)
class After(Schedule):
    """Schedule that prunes the trained network; the remaining epochs fine-tune it.

    Without `delay` and `freq` the last eighth of the epochs is reserved for fine-tuning (at least one epoch if the
    run has two).

    Args:
        delay: number of epochs before the interval. At least 0, or None for the default.
        freq: number of further epochs before pruning, which happens at the end of epoch delay + freq. At least 1,
            or None for the default.
        steps: number of consecutive pruning steps; each step re-scores the remaining network. At least 1.
        spacing: spacing of the targets of the steps, "halving" or "exponential"; see `Before`.

    Raises:
        UsageError: if a number is too small or `spacing` is unknown.

    Example:
        >>> from secateur import After
        >>> After().plan(limit=0.5, epochs=16)  # epochs 14 and 15 fine-tune
        {13: [0.5]}
    """

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
                    f"nothing would be pruned: delay and freq name the end of epoch {moment}, and epochs is "
                    f"{epochs} (the first is 0)",
                    argument=("delay", "freq"),
                )
        else:
            moment = epochs - 1 - (max(1, round(epochs / 8)) if epochs > 1 else 0)
        return {moment: self.one_shot(limit)}


@dataclass(frozen=True)
class Rounds(Schedule):
    """Schedule that prunes in rounds of one epoch of training and one pruning step.

    Each round re-scores the remaining network; the epochs after the last round fine-tune it. Without `thresholds`
    the sparsity after round k of n is 1 - n(1 - p) / (n(1 - p) + k p) for the final sparsity p. Lubana and Dick,
    "A Gradient Flow Framework For Analyzing Network Pruning", 2020, arXiv:2009.11839.

    Args:
        n_rounds: number of rounds, at least 1; ignored if `thresholds` are given.
        warmup: number of epochs of training before the first pruning step, which include the epoch of round 1.
            0 and 1 are equivalent.
        thresholds: ascending sparsities after each round, as shares in [0, 1), or as percentages if any exceeds 1.
            The last one replaces the final sparsity.

    Raises:
        UsageError: if a number is too small, or if `thresholds` do not ascend or are out of range.

    Example:
        >>> from secateur import Rounds
        >>> Rounds(n_rounds=2, warmup=3).plan(limit=0.5, epochs=10)  # 2/3 and 1/2 of the weights are kept
        {2: [0.3333333333333333], 3: [0.5]}
        >>> Rounds(thresholds=(30, 60)).plan(limit=0.6, epochs=10)
        {0: [0.3], 1: [0.6]}
    """

    n_rounds: int = 5
    warmup: int = 0
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_wholes(self, n_rounds=1, warmup=0)
        if self.thresholds:
            object.__setattr__(self, "thresholds", shares(self.thresholds))
            object.__setattr__(self, "n_rounds", len(self.thresholds))

    @property
    def first(self) -> int:
        """Epoch of round 1, 0-based; each later round takes the next epoch."""
        return max(0, self.warmup - 1)

    def one_shot(self, limit: float) -> list[float]:
        """Return the targets of all rounds in order."""
        return list(self.thresholds) or round_targets(limit, self.n_rounds)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        """Return one target for the end of each round; raise UsageError if the run has too few epochs."""
        needed = self.first + self.n_rounds
        if needed > epochs:
            warm = f" after {self.first} epochs of warm-up" if self.first else ""
            raise UsageError(
                f"{self.n_rounds} rounds of an epoch each{warm} need {needed} epochs, and epochs is {epochs}"
            )
        return {self.first + number: [target] for number, target in enumerate(self.one_shot(limit))}


def steps_of(schedule: Schedule) -> int:
    """Return the number of steps of a schedule that takes several at once; 1 for others."""
    return schedule.steps if isinstance(schedule, Before | During | After) else 1


def chosen(own: Schedule, when: str | None, delay: int | None, freq: int | None, snip_steps: int) -> Schedule:
    """Return the schedule of a criterion, modified by the settings of the user.

    `when` is before, during, after or None for the default of the criterion. Criterions with several steps use
    `snip_steps` + 2 steps; criterions with a single step ignore `snip_steps`.
    """
    kinds: dict[str, type[Before | During | After]] = {"before": Before, "during": During, "after": After}
    kind = kinds.get(when or type(own).__name__.lower())
    if kind is None:
        return own
    steps = snip_steps + 2 if steps_of(own) > 1 else ITERATIVE if kind is During else 1
    changes: dict[str, Any] = {"steps": steps, "spacing": getattr(own, "spacing", "halving")}
    if kind is not Before:
        changes |= {name: given for name, given in (("delay", delay), ("freq", freq)) if given is not None}
    return replace(own if isinstance(own, kind) else kind(), **changes)
