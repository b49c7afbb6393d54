from __future__ import annotations

from typing import ClassVar

from secateur import During, Schedule
from secateur.criterions.CNIP import CNIP


class CNIPitDuring(CNIP):
    """CNIP in several steps during training, at the ends of epochs (`--prune_delay`, `--prune_freq`).

    Verdenius, Stol and Forré, 2020, arXiv:2006.00896.
    """

    schedule: ClassVar[Schedule] = During()
