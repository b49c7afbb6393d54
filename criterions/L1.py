from secateur import During
from secateur.criterions.WeightAbs import WeightAbs


class L1(WeightAbs):
    """Sum of |w| over each channel's weights, during training; the scores equal those of WeightAbs.

    Lubana and Dick, 2020, arXiv:2009.11839.
    """

    schedule = During()
    paper = "arXiv:2009.11839"
    recommended = {"T": 5.0, "keep_share": {"rounds": 0.05}}
