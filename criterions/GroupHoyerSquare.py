from torch import Tensor

from secateur import After, ChannelWeightCriterion, UsageError


class GroupHoyerSquare(ChannelWeightCriterion):
    """Largest |w| of each channel with a fixed `threshold`, once, after training with the loss of the same name.

    Channels whose weights, the rows of all producers, are at or below the threshold are pruned; the best channel
    of a group is kept. `--pruning_limit` has no effect, except that 0 prunes nothing. Yang, Wen and Li, 2019,
    arXiv:1908.09979.
    """

    schedule = After()
    paper = "arXiv:1908.09979"

    def __init__(self, *, threshold: float = 1e-3) -> None:
        if not threshold >= 0:
            raise UsageError(f"GroupHoyerSquare: threshold must be at least 0, got {threshold}")
        super().__init__(threshold=threshold)

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the largest |w|."""
        return weight.abs().amax(1)
