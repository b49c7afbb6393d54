from secateur import During
from secateur.criterions.BNWeight import BNWeight


class BN(BNWeight):
    """|scale| of the batch norm after each channel, during training; the scores equal those of BNWeight.

    Lubana and Dick, 2020, arXiv:2009.11839.
    """

    schedule = During()
    paper = "arXiv:2009.11839"
    recommended = {"T": 5.0, "keep_share": {"rounds": 0.05}}
