from __future__ import annotations

from typing import ClassVar

from secateur import After, Schedule, UsageError
from secateur.criterions.Magnitude import Magnitude


class HoyerSquare(Magnitude):
    """Keeps |w| above a fixed `threshold`, once, after training with the loss of the same name.

    `--pruning_limit` has no effect, but for 0, which prunes nothing. Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:1908.09979"

    def __init__(self, *, threshold: float = 1e-3) -> None:
        if not threshold >= 0:
            raise UsageError(f"HoyerSquare: threshold must be at least 0, got {threshold}")
        super().__init__(threshold=threshold)
