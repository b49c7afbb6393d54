from secateur import During
from secateur.criterions.Magnitude import Magnitude


class IMP(Magnitude):
    """Iterative magnitude pruning: |w| in several steps during training.

    With `--enable_rewinding` it finds lottery tickets.

    Frankle and Carbin, 2018, arXiv:1803.03635.
    """

    schedule = During()
    paper = "arXiv:1803.03635"
