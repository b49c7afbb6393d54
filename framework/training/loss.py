"""The contract of a loss: a task term that criterions score with, and a penalty that only training sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Loss(ABC):
    """`loss(outputs, targets)` is a scalar, the mean over the batch; `penalty(model)` is added in training."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean task loss of a batch: outputs (batch, classes) logits, targets (batch,) int64."""

    def penalty(self, model: nn.Module) -> Tensor:
        """Scalar added to the task loss in training; reported apart and never scored."""
        return torch.zeros((), device=next(model.parameters()).device)
