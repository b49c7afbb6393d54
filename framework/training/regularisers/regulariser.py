"""The contract of a regulariser: a loss whose penalty measures weights until the network is pruned."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import was_pruned
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.framework.training.loss import Loss
from secateur.framework.training.regularisers.measures import Measured, differentiable
from secateur.framework.training.regularisers.structure import Coupled, convolution_groups, of_tensors
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

#: groups of structural regularisers
WHOLE, FIBRES, COUPLED = "whole", "fibres", "coupled"
GROUPS = (WHOLE, FIBRES, COUPLED)


class Regulariser(Loss):
    """Base class of the regularisers: adds `decay` * sum of a measure over tensors to the penalty of a loss.

    Measured are all parameters of two or more dimensions: weights of convolutions of any dimension and linear
    layers, and embeddings; no biases, and no scales and shifts of norm layers. The penalty ends with the first
    pruning step; what remains is fine-tuned without it. Values and gradients are finite everywhere: a tensor or a
    group of zeros has the measure 0 and the subgradient 0, as in `torch.linalg.vector_norm`, and stays at zero as
    far as the penalty is concerned. They are computed in float32 or wider under autocast, too.

    A subclass stands before the loss that it is added to, `class L1(Regulariser, CrossEntropy)`, and defines
    `measure`.

    Args:
        decay: Weight of the measure, at least 0; 0 switches it off.
        options: Options of the loss, by keyword.

    Raises:
        UsageError: If `decay` is negative.
    """

    def __init__(self, *, decay: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        self.decay = checked_weight(self, "decay", decay)

    @abstractmethod
    def measure(self, weights: list[Tensor]) -> Measured:
        """Return the sum of the measure over tensors of two or more dimensions, with its gradients."""

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the penalty of the loss plus `decay` times the measure; without the latter once pruned."""
        total = super().penalty(model)
        if self.decay == 0 or was_pruned(model):
            return total
        return total + self.decay * self.measured(model)

    def measured(self, model: nn.Module) -> Tensor:
        """Return the measure of a network, a scalar that can be differentiated."""
        weights = measured_weights(model)
        if not weights:
            return torch.zeros((), device=next(model.parameters()).device)
        return differentiable(self.measure, weights)


class StructuralRegulariser(Regulariser):
    """Base class of the regularisers of groups of weights, of which each group has one L2 norm.

    The groups of a tensor are its whole filters (axis 0) and its whole input channels (axis 1), which overlap;
    of a grouped convolution an input channel is read by the filters of its own part only.

    Args:
        decay: Weight of the measure, at least 0; 0 switches it off.
        groups: "whole", filters and input channels of each tensor; "fibres", the finer norms over the filters only
            and over the input channels only; "coupled", the channels of the network as a cut removes them, with
            everything that belongs to one channel in a single norm. The last one needs `prepare`.
        options: Options of the loss, by keyword.

    Raises:
        UsageError: If `decay` is negative or `groups` is none of these.
    """

    form: ClassVar[str]

    def __init__(self, *, decay: float = 1e-3, groups: str = WHOLE, **options: Any) -> None:
        if groups not in GROUPS:
            raise UsageError(unknown(f"groups of {type(self).__name__}", groups, GROUPS))
        super().__init__(decay=decay, **options)
        self.groups = groups
        self._free: dict[str, ChannelGroup] | None = None
        self._parts: dict[int, int] = {}
        self._coupled: Coupled | None = None
        self._model: weakref.ref[nn.Module] | None = None

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Find the channels of a network; raise UsageError if it has none that can be cut."""
        super().prepare(model, example_input)
        self._free, self._model = free_groups(channel_groups(model, example_input)), None
        if not self._free:
            name = type(self).__name__
            raise UsageError(
                f"{name}: this network has no channels that can be cut: use an element-wise regulariser"
            )

    def measured(self, model: nn.Module) -> Tensor:
        """Return the measure of a network, a scalar that can be differentiated."""
        if self._model is None or self._model() is not model:
            if self.groups == COUPLED and self._free is None:
                raise UsageError(
                    f"{type(self).__name__}: groups 'coupled' are those of a traced network: call "
                    "prepare(model, example_input) first"
                )
            self._parts = convolution_groups(model)
            self._coupled = Coupled(model, self._free) if self.groups == COUPLED and self._free else None
            self._model = weakref.ref(model)
        if self._coupled is None:
            weights = measured_weights(model)
            if not weights:
                return super().measured(model)
            parts = [self._parts.get(id(weight), 1) for weight in weights]
            return differentiable(
                lambda tensors: of_tensors(tensors, self.form, parts, self.groups == FIBRES), weights
            )
        coupled = self._coupled
        return differentiable(lambda tensors: coupled.measure(tensors, self.form), coupled.parameters)

    def measure(self, weights: list[Tensor]) -> Measured:
        """Return the sum of the measure over plain tensors of two or more dimensions, with its gradients."""
        return of_tensors(weights, self.form, [1] * len(weights), self.groups == FIBRES)


class Regularised(Loss):
    """Any loss with the penalty of a regulariser on top of its own.

    Args:
        loss: The loss.
        regulariser: The regulariser; its own task loss is not used.
    """

    def __init__(self, loss: Loss, regulariser: Regulariser) -> None:
        super().__init__()
        self.loss, self.regulariser = loss, regulariser

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the task loss."""
        return self.loss(outputs, targets)

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the sum of both penalties."""
        return self.loss.penalty(model) + self.regulariser.penalty(model)

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Prepare both."""
        self.loss.prepare(model, example_input)
        self.regulariser.prepare(model, example_input)


def regulariser_of(loss: Loss) -> Regulariser | None:
    """Return the regulariser that a loss is or contains; None if there is none."""
    if isinstance(loss, Regularised):
        return loss.regulariser
    return loss if isinstance(loss, Regulariser) else None


def checked_weight(loss: Loss, option: str, value: float) -> float:
    """Return the weight of a measure; raise UsageError, naming the loss and the option, if it is negative."""
    if not value >= 0:
        raise UsageError(f"{type(loss).__name__}: {option} must be at least 0, got {value}", argument=option)
    return value


def measured_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that regularisers measure: those of two or more dimensions."""
    return [parameter for parameter in model.parameters() if parameter.dim() > 1 and parameter.numel()]
