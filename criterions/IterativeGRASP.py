from __future__ import annotations

from typing import ClassVar

from secateur import Before, Schedule
from secateur.criterions.GRASP import GRASP
from secateur.framework.schedules.base import ITERATIVE


class IterativeGRASP(GRASP):
    """GRASP in rising steps before training, each one by the gradient flow of the weights that are left.

    Wang, Zhang and Grosse, 2020, arXiv:2002.07376.
    """

    schedule: ClassVar[Schedule] = Before(steps=ITERATIVE)
