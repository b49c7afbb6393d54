from secateur import Before
from secateur.criterions.SNIP import SNIP
from secateur.framework.schedules.base import ITERATIVE


class SNIPit(SNIP):
    """SNIP in several steps before training, each of which scores the remaining weights.

    Verdenius, Stol and Forré, 2020, arXiv:2006.00896.
    """

    schedule = Before(steps=ITERATIVE)
    paper = "arXiv:2006.00896"
