from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction, Scores
from secateur.criterions.ChannelNorm import ChannelNorm


class WeightNorm(ChannelNorm):
    """Sum of w^2 over each channel's weights, the square of ChannelNorm with p = 2, with the same ranking.

    Method 2 of Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    paper = "arXiv:1906.10771"

    def __init__(self) -> None:
        super().__init__(p=2)
        self._options = {}

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the sum of w^2 of every free channel, `(channels,)` per group."""
        return {name: norm.square() for name, norm in super().score(model, batches, loss, groups).items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the sum of w^2 of each column of the first layer's weight, `(inputs,)`."""
        return super().input_scores(model, batches, loss, layer).square()
