"""The listener that gives the epochs in which the network is pruned a learning rate of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from secateur.framework.training.hooks import hookimpl
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class PruningRate:
    """Steps in epochs of the phase "pruning" are made with `rate`, whatever the schedule of the rate says.

    The schedule goes on meanwhile. Where groups of parameters have rates of their own, these keep their ratio to
    that of the first.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._whole: list[float] = []

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """The step comes next."""
        if trainer.progress.phase != "pruning":
            return
        groups = unwrapped(trainer.optimizer).param_groups
        self._whole = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._whole, strict=True):
            group["lr"] = self.rate * (rate / self._whole[0] if self._whole[0] else 1.0)

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """The step is done."""
        if self._whole:
            groups = unwrapped(trainer.optimizer).param_groups
            for group, rate in zip(groups, self._whole, strict=True):
                group["lr"] = rate
            self._whole = []
