from torch import Tensor

from secateur.criterions.ChannelNorm import ChannelNorm


class WeightNorm(ChannelNorm):
    """Sum of w^2 over each channel's weights, the square of ChannelNorm with p = 2, with the same ranking.

    Method 2 of Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    paper = "arXiv:1906.10771"

    def __init__(self) -> None:
        super().__init__(p=2)

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return sum w^2."""
        return super().formula(weight, gradient).square()
