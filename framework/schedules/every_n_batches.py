"""The schedule that prunes a few channels every few batches."""

from dataclasses import dataclass

from secateur.framework.schedules.base import Schedule
from secateur.utils.errors import UsageError
from secateur.utils.limits import check_shares, check_wholes

#: batches between steps
FREQUENCY = 30
#: smallest number of steps in the first half of a short run, if its frequency is not fixed
SEVERAL = 5


@dataclass(frozen=True)
class Iterative(Schedule):
    """Schedule that prunes every few batches during training.

    Every `frequency` batches the scores are averaged over the batches since the last step, and the channels (or
    weights) with the lowest scores are pruned. Steps are counted from 1. Without `per_step` the number of channels
    per step is chosen such that the final sparsity is reached with the last step: halfway through the run, or with
    step `maximum`. With `per_step` the final sparsity ends pruning only if neither `maximum` nor `most` is given.
    Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance Estimation for Neural Network Pruning", 2019,
    arXiv:1906.10771.

    Args:
        frequency: number of batches between steps, at least 1. None: 30, or fewer in a short run.
        per_step: number of channels to prune per step. None: as many as the final sparsity requires.
        maximum: total number of steps, at least 1. None: no limit.
        most: total number of channels to prune. None: no limit.
        start: first step that prunes; earlier steps only update the scores. 0 and 1 are equivalent.
        momentum: factor of the running average in [0, 1): score = momentum * score + (1 - momentum) * new score.
        group_size: number of channels of a layer, consecutive in the order of their scores, that are pruned
            together.
        l2_per_layer: divide the scores of each layer by their L2 norm before they are compared.
        loss_limit: skip a step while the mean training loss since the last one exceeds this value; skipped steps
            are not counted. None: never skip.
        fixed_criteria: keep the scores of the first step that prunes for all later steps.
        fixed_layer: index of the only channel group to prune, in forward order of the prunable groups. None: all.
        flops: value subtracted from the score of a channel for each multiply-add that its removal saves.

    Raises:
        UsageError: if a value is out of range, if `per_step` is below `group_size`, or if `start` exceeds
            `maximum`.

    Example:
        >>> from secateur import Iterative
        >>> schedule = Iterative(frequency=10)
        >>> schedule.plan(limit=0.5, epochs=4)  # 0.5 is reached by the end of epoch 3
        {3: [0.5]}
        >>> schedule.steps(batches=200)  # batches between steps, number of steps
        (10, 10)
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
        check_wholes(self, frequency=1, per_step=0, maximum=1, most=0, start=0, group_size=1, fixed_layer=0)
        check_shares(self, "momentum")
        for name in ("loss_limit", "flops"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError(f"Iterative: {name} must be at least 0, got {value}", argument=name)
        if self.per_step and self.per_step < self.group_size:
            raise UsageError(
                f"nothing would be pruned: {self.per_step} channels per step in sets of {self.group_size}; "
                "per_step must be at least group_size",
                argument=("per_step", "group_size"),
            )
        if self.maximum is not None and self.start > self.maximum:
            raise UsageError(
                f"nothing would be pruned: the first step that prunes is {self.start}, of {self.maximum} steps"
            )

    @property
    def counted(self) -> bool:
        """Whether the number of channels ends pruning, and not the final sparsity."""
        return self.per_step is not None and (self.maximum is not None or self.most is not None)

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        """Return `limit` for the end of the last epoch; `steps` counts the pruning steps in batches."""
        if epochs < 1:
            raise UsageError(
                "nothing would be pruned: the iterative schedule prunes during training, and epochs is 0"
            )
        return {epochs - 1: [limit]}

    def one_shot(self, limit: float) -> list[float]:
        """Return `limit` as the single target."""
        return [limit]

    def steps(self, batches: int) -> tuple[int, int | None]:
        """Return the number of batches between steps and the number of steps in a run.

        Args:
            batches: number of training batches of the run.

        Returns:
            (batches between steps, number of steps); None as the number of steps stands for no limit.

        Raises:
            UsageError: if a run with a target sparsity is too short for one pruning step. With `per_step` the run
                takes as many steps as fit.
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
