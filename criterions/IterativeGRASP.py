from secateur import Before
from secateur.criterions.GRASP import GRASP
from secateur.framework.schedules.base import ITERATIVE


class IterativeGRASP(GRASP):
    """GRASP in several steps before training, each of which uses the gradient flow of the remaining weights.

    Wang, Zhang and Grosse, 2020, arXiv:2002.07376.
    """

    schedule = Before(steps=ITERATIVE)
