from secateur import During
from secateur.criterions.ChannelNorm import ChannelNorm


class MagBased(ChannelNorm):
    """L2 norm of each channel's weights, during training; the scores equal those of ChannelNorm with p = 2.

    Lubana and Dick, 2020, arXiv:2009.11839.
    """

    schedule = During()
    paper = "arXiv:2009.11839"
    recommended = {"T": 5.0, "keep_share": {"rounds": 0.05}}

    def __init__(self) -> None:
        super().__init__(p=2)
