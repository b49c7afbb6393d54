"""Pruning every few batches, a few channels at a time."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.framework.schedules.base import Schedule
from secateur.utils.errors import UsageError

#: batches between steps
FREQUENCY = 30
#: prunings that even a short run has room for in its first half, if it may choose how often
SEVERAL = 5


@dataclass(frozen=True)
class Iterative(Schedule):
    """A step every `frequency` batches: scores averaged since the last one, and the lowest channels cut at once.

    Steps count from 1. Without `per_step` they are spread over the first half of the batches, or over `maximum`
    steps, so that the limit is met with the last of them; with it, each takes so many channels, in all not more
    than `most`, and only where neither `maximum` nor `most` is given the limit ends it. Molchanov, Mallya, Tyree,
    Frosio and Kautz, 2019, arXiv:1906.10771.

    frequency: batches between steps; None: 30, or fewer in a short run.
    per_step: channels of a step. maximum: steps in all. most: channels in all.
    start: the first step that prunes; those before it only score (0 and 1 are the same).
    momentum: scores of a step are momentum * those of the steps before + (1 - momentum) * new ones.
    group_size: channels go in sets of so many, consecutive in the order of their layer's scores.
    l2_per_layer: a layer's scores are divided by their L2 norm before they are compared.
    loss_limit: no step while the mean training loss since the last one is above; such a step does not count.
    fixed_criteria: the scores of the first step that prunes are kept for all later ones.
    fixed_layer: only this free group is pruned, 0 is the first of the forward pass.
    flops: what a multiply-add that goes with a channel takes off its score.
    """

    frequency: int | None = FREQUENCY
    per_step: int | None = None
    maximum: int | None = None
    most: int | None = None
    start: int = 0
    momentum: float = 0.9
    group_size: int = 1
    l2_per_layer: bool = False
    loss_limit: float | None = None
    fixed_criteria: bool = False
    fixed_layer: int | None = None
    flops: float = 0.0

    def __post_init__(self) -> None:
        least = {
            "frequency": 1,
            "per_step": 0,
            "maximum": 1,
            "most": 0,
            "start": 0,
            "group_size": 1,
            "fixed_layer": 0,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise UsageError(f"Iterative: {name} must be a whole number from {low} on, got {value!r}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"Iterative: momentum must be in [0, 1), got {self.momentum}")
        for name in ("loss_limit", "flops"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"Iterative: {name} must be at least 0, got {value}")
        if self.per_step and self.per_step < self.group_size:
            raise UsageError(
                f"steps of {self.per_step} channels in sets of {self.group_size}: nothing would ever go; "
                "prune_per_iteration must be at least group_size"
            )
        if self.maximum is not None and self.start > self.maximum:
            raise UsageError(
                f"nothing would be pruned: step {self.start} is the first that prunes, of {self.maximum} steps"
            )

    @property
    def counted(self) -> bool:
        """Whether numbers of channels say how far it goes, and not the limit."""
        return self.per_step is not None and (self.maximum is not None or self.most is not None)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        """The limit, at the latest at the end of the last epoch: steps are batches, see `steps`."""
        if epochs < 1:
            raise UsageError("nothing would be pruned: the schedule iterative prunes in training, and epochs is 0")
        return {epochs - 1: [limit]}

    def one_shot(self, limit: float) -> list[float]:
        """The limit, at once."""
        return [limit]

    def steps(self, batches: int) -> tuple[int, int | None]:
        """Batches between steps, and the number of steps (None: as many as it takes), in a run of `batches`.

        UsageError where a run that has to meet a limit has no time for a step that prunes. Where numbers of
        channels are asked for, the run does as many steps as it has.
        """
        frequency = self.frequency or max(1, min(FREQUENCY, batches // (2 * SEVERAL)))
        if self.per_step is not None:
            return frequency, self.maximum
        able, first = batches // frequency, max(1, self.start)
        if able < first:
            raise UsageError(
                f"nothing would be pruned: the first pruning comes after {first * frequency} batches (frequency "
                f"{frequency}), and the run has {batches}"
            )
        wanted = self.maximum if self.maximum is not None else max(first, batches // 2 // frequency)
        return frequency, min(able, wanted)
