from __future__ import annotations

from secateur.criterions.ChannelNorm import ChannelNorm


class WeightAbs(ChannelNorm):
    """Sum of |w| over each channel's weights: the same as ChannelNorm with p = 1, under the name of method 3.

    Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    paper = "arXiv:1906.10771"

    def __init__(self) -> None:
        super().__init__(p=1)
        self._options = {}
