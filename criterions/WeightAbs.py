from secateur.criterions.ChannelNorm import ChannelNorm


class WeightAbs(ChannelNorm):
    """Sum of |w| over each channel's weights, after training; the scores equal those of ChannelNorm with p = 1.

    Method 3 of Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    paper = "arXiv:1906.10771"

    def __init__(self) -> None:
        super().__init__(p=1)
