"""The contract of a loss: a task loss, which criterions score with too, and a penalty for training only."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Loss(ABC):
    """Base class of the losses.

    Calling a loss with a batch returns the task loss, which training, evaluation and criterions use. The
    `penalty` is added in training only. A subclass implements `__call__`.

    Args:
        options: options of the subclass, by keyword; each becomes an attribute of the instance.

    Example:
        >>> import torch
        >>> from secateur import Loss
        >>> class Squared(Loss):
        ...     def __call__(self, outputs, targets):
        ...         return (outputs - targets).square().mean()
        ...     def penalty(self, model):
        ...         return self.l1 * sum(parameter.abs().sum() for parameter in model.parameters())
        >>> loss = Squared(l1=0.1)
        >>> loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor(2.)
    """

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean task loss of a batch.

        Args:
            outputs: logits of the network, (batch, classes).
            targets: true classes, (batch,) int64.

        Returns:
            Scalar tensor, differentiable with respect to `outputs`.
        """

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the penalty that is added to the task loss in training; it is reported separately.

        Args:
            model: network that is trained.

        Returns:
            Scalar tensor on the device of the model; 0 unless a subclass overrides this method.
        """
        return torch.zeros((), device=next(model.parameters()).device)

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:  # noqa: B027
        """Called once before training, before any file is written; default: nothing.

        Args:
            model: network that will be trained.
            example_input: one sample on the device of the model.

        Raises:
            UsageError: if the loss does not apply to the network.
        """
