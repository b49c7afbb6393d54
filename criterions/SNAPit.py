from secateur import Before
from secateur.criterions.SNAP import SNAP
from secateur.framework.schedules.base import ITERATIVE


class SNAPit(SNAP):
    """SNAP in several steps before training, each of which scores the remaining channels.

    Verdenius, Stol and Forré, 2020, arXiv:2006.00896.
    """

    schedule = Before(steps=ITERATIVE)
