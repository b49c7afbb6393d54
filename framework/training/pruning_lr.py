"""A listener that sets the learning rate of the epochs in which the network is pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from secateur.framework.training.hooks import hookimpl
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class PruningRate:
    """Use the learning rate `rate` for all steps of the phase "pruning", in place of the scheduled one.

    The scheduler is stepped as usual meanwhile. Parameter groups with different rates keep their ratio to the rate
    of the first group.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._whole: list[float] = []

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """Set the learning rate before the optimizer step."""
        if trainer.progress.phase != "pruning":
            return
        groups = unwrapped(trainer.optimizer).param_groups
        self._whole = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._whole, strict=True):
            group["lr"] = self.rate * (rate / self._whole[0] if self._whole[0] else 1.0)

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Restore the scheduled learning rate after the optimizer step."""
        if self._whole:
            groups = unwrapped(trainer.optimizer).param_groups
            for group, rate in zip(groups, self._whole, strict=True):
                group["lr"] = rate
            self._whole = []
