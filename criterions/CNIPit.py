from secateur import Before
from secateur.criterions.CNIP import CNIP
from secateur.framework.schedules.base import ITERATIVE


class CNIPit(CNIP):
    """CNIP in several steps before training, each of which scores the remaining weights and channels.

    Verdenius, Stol and Forré, 2020, arXiv:2006.00896.
    """

    schedule = Before(steps=ITERATIVE)
