"""The schedule that prunes in rounds, each of one epoch of training and one pruning step."""

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.framework.schedules.base import Schedule
from secateur.utils.errors import UsageError
from secateur.utils.limits import check_wholes


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
