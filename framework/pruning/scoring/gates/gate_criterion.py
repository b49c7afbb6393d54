"""Base classes of criterions that are a formula of the outputs of channels and the derivatives by their gates."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.scoring.channel_sums import of_units
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores
from secateur.framework.pruning.scoring.gates.curvature import Curvature
from secateur.framework.pruning.scoring.gates.gated import Observed, attached
from secateur.framework.pruning.scoring.gates.gradients import UNREACHED, gate_gradients
from secateur.framework.pruning.scoring.gates.sites import GateSites, Place
from secateur.framework.pruning.scoring.gradients import Part, freeze, mean_of, peek
from secateur.framework.pruning.scoring.inputs import with_groups
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

#: divisors of the scores of n producers: 1, n or n * n
DIVISORS = ("none", "n", "n2")


class BatchMean(Criterion):
    """Averages the scores of batches, which `parts` yields."""

    granularity: ClassVar[str] = "channel"
    equal_batches: ClassVar[bool] = False
    divisor: str = "none"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.divisor not in DIVISORS:
            raise UsageError(f"{self.name}: {unknown('divisor', str(self.divisor), DIVISORS)}")

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the mean over batches of the scores of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        with scoring(model):
            parts = self.parts(model, batches, loss, free)
            scores = mean_of(parts, self.equal_batches)
        power = DIVISORS.index(self.divisor)
        return {name: (score / len(free[name].producers) ** power).float() for name, score in scores.items()}

    @abstractmethod
    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and its scores."""


class GateCriterion(BatchMean):
    """Base class of channel criterions that are a formula of the gradient of a gate on each channel.

    A gate z = 1 multiplies the output of a channel, after its batch norm; if several layers produce the channel,
    as in a residual network, one gate multiplies all their outputs. The network is not changed. A subclass
    implements `formula`; the scores are its mean over batches, weighted by their sizes.

    Args:
        **options: Options of the criterion. Each becomes an attribute of the instance and appears in its `repr`.

    Attributes:
        per_sample: Whether `formula` gets the gradient of every sample instead of their sum. False by default.
        place: Where the gate is: "norm" (default; after the batch norm that follows the producer, or on the
            producer's output without one) or "producer" (on the producer's output, before any norm).
        equal_batches: Whether all batches have the same weight, whatever their sizes. False by default.
        divisor: Divisor of the scores of a channel with n producers: "none" (default), "n" or "n2" (n * n).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import GateCriterion
        >>> class GateSize(GateCriterion):
        ...     def formula(self, gradient):
        ...         return gradient.abs()
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        ...     _ = model[1].weight.fill_(1.0)
        >>> batches = [(torch.ones(1, 2), torch.zeros(1, 1))]
        >>> GateSize().score(model, batches, nn.functional.mse_loss)
        {'0': tensor([ 6., 12.])}
    """

    per_sample: ClassVar[bool] = False
    place: ClassVar[Place] = "norm"

    @abstractmethod
    def formula(self, gradient: Tensor) -> Tensor:
        """Compute the scores of the channels of one group from one batch.

        Args:
            gradient: dL/dz of the mean loss L of the batch at z = 1, `(channels,)`; with `per_sample` the part of
                each sample, `(samples, channels)`.

        Returns:
            One score per channel, `(channels,)`; higher scores are kept longer.
        """

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and the formula of its gradients."""
        gates = gate_gradients(model, batches, loss, groups, self.place, self.per_sample)
        for size, _, gradients in gates:
            yield size, {name: self.formula(gradient) for name, gradient in gradients.items()}


class CurvatureCriterion(BatchMean):
    """Base class of channel criterions that are a formula of the first and second derivative by a gate.

    The gates and the mean over batches are those of `GateCriterion`. The second derivatives are exact.

    Args:
        **options: Options of the criterion. Each becomes an attribute of the instance and appears in its `repr`.

    Attributes:
        equal_batches: Whether all batches have the same weight, whatever their sizes. False by default.
        divisor: Divisor of the scores of a channel with n producers: "none" (default), "n" or "n2" (n * n).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import CurvatureCriterion
        >>> class Change(CurvatureCriterion):
        ...     def formula(self, first, second):
        ...         return second / 2 - first
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        ...     _ = model[1].weight.fill_(1.0)
        >>> batches = [(torch.ones(1, 2), torch.zeros(1, 1))]
        >>> Change().score(model, batches, nn.functional.mse_loss)  # the loss is 9, and 4 or 1 without a channel
        {'0': tensor([-5., -8.])}
    """

    _passes: float = 1.0

    @abstractmethod
    def formula(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute the scores of the channels of one group from one batch.

        Args:
            first: dL/dz of the mean loss L of the batch at z = 1, `(channels,)`.
            second: d2L/dz2, `(channels,)`.

        Returns:
            One score per channel, `(channels,)`; higher scores are kept longer.
        """

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and the formula of its derivatives."""
        sample, batches = peek(batches)
        plan = Curvature.plan(model, groups, sample[:2])
        for inputs, targets in batches:
            first, second = plan.of(inputs, targets, loss)
            yield len(inputs), {name: self.formula(first[name], second[name]) for name in groups}

    def start(self, model: nn.Module) -> None:
        """Determine the number of passes per sample."""
        if self.example_input is not None:
            groups = free_groups(channel_groups(model, self.example_input))
            with scoring(model):
                self._passes = Curvature.plan(model, groups, self.example_input[:1]).passes

    def cost(self, samples: int) -> float:
        """Return the cost of the backward passes per output and per channel, see `Curvature.passes`."""
        return samples * self._passes


class ActivationCriterion(BatchMean):
    """Base class of channel criterions that are a formula of the activations of each channel and their gradients.

    The activations are the channel's outputs at the place of the gate of `GateCriterion`: after the batch norm
    that follows the producer, or of the producer without one. A subclass implements `formula`, the values of each
    sample and position; the score of a channel is the mean of their absolute values, averaged over batches by
    their sizes. If several layers produce the channel, as in a residual network, their values are added before the
    absolute value; those of a layer with fewer positions are summed and spread evenly. The activations of one
    layer at a time are in memory.

    Args:
        **options: Options of the criterion. Each becomes an attribute of the instance and appears in its `repr`.

    Attributes:
        equal_batches: Whether all batches have the same weight, whatever their sizes. False by default.
        divisor: Divisor of the scores of a channel with n producers: "none" (default), "n" or "n2" (n * n).

    Example:
        The first-order Taylor approximation |a * dL/da| of Molchanov et al., 2016, arXiv:1611.06440.

        >>> import torch
        >>> from torch import nn
        >>> from secateur import ActivationCriterion
        >>> class Taylor(ActivationCriterion):
        ...     def formula(self, activation, gradient):
        ...         return activation * gradient
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        ...     _ = model[1].weight.fill_(1.0)
        >>> batches = [(torch.ones(1, 2), torch.zeros(1, 1))]
        >>> Taylor().score(model, batches, nn.functional.mse_loss)
        {'0': tensor([ 6., 12.])}
    """

    @abstractmethod
    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Compute the values of one layer's channels in one batch.

        Args:
            activation: The outputs a of the channels, `(channels, samples, positions)`; positions are the pixels
                of images, the elements of sequences, or a single one. They must not be modified.
            gradient: dL/da of the mean loss L of the batch, in eval mode, in the same shape. It must not be
                modified.

        Returns:
            The values, `(channels, samples, positions)`.
        """

    def reduce(self, values: Tensor) -> Tensor:
        """Compute the scores of the channels of one group from their values in one batch.

        Args:
            values: The values of `formula`, summed over all layers that produce the channels, `(channels, samples,
                positions)`.

        Returns:
            One score per channel, `(channels,)`; higher scores are kept longer. By default the mean of the
            absolute values over samples and positions.
        """
        return values.abs().mean((1, 2))

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and its scores; UsageError for outputs that are not those of a module."""
        sample, batches = peek(batches)
        sites = GateSites.find(model, groups, sample[:1])
        hidden = next(iter(sites.scaled.values()), None)
        if hidden is not None:
            raise UsageError(f"the output of '{hidden}' cannot be observed: use a weight criterion or TaylorGate")
        freeze(model)
        for inputs, targets in batches:
            yield len(inputs), _Sums(self, sites).scores_of(inputs, targets, loss)


class _Sums:
    """The values of each group, which are reduced as soon as all outputs of its producers have been received."""

    def __init__(self, criterion: ActivationCriterion, sites: GateSites) -> None:
        self.criterion, self.sites = criterion, sites
        self.units: dict[str, list[tuple[str, Tensor]]] = {}
        for name, group in sites.groups.items():
            for part in group.produced:
                self.units.setdefault(part.tensor, []).append((name, part.index))
        self.pending: Counter[str] = Counter()
        self.sums: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}

    def scores_of(self, inputs: Tensor, targets: Tensor, loss: LossFunction) -> dict[str, Tensor]:
        """Run a pass and return the scores; the values of outputs without influence on the loss are zero."""
        with attached(self.sites, self._observe):
            value = loss(self.sites.model(inputs), targets)
        if not value.requires_grad:
            raise UsageError(UNREACHED)
        value.backward()
        zero = value.new_zeros(1, len(inputs), 1)
        for name, group in self.sites.groups.items():
            if name not in self.scores:
                values = self.sums.pop(name, zero.expand(group.channels, -1, -1))
                self.scores[name] = self.criterion.reduce(values)
        return {name: self.scores[name] for name in self.sites.groups}

    def _observe(self, weight: str, output: Tensor, source: Tensor, norm: Any, copy: bool) -> Tensor:
        self.pending.update(name for name, _ in self.units[weight])
        anchor = output.new_ones(()).requires_grad_()
        sources = [source.detach()]

        def receive(gradient: Tensor) -> Tensor:
            given = sources.pop()  # the graph no longer has it in memory afterwards
            self._add(weight, given if norm is None else norm.forward(given), gradient)
            return gradient

        result: Tensor = Observed.apply(output, anchor, receive, copy)
        return result

    def _add(self, weight: str, *tensors: Tensor) -> None:
        axis = self.sites.axis(weight, tensors[0])
        activation, gradient = (
            tensor.movedim((axis, 0), (0, 1)).reshape(tensor.shape[axis], len(tensor), -1) for tensor in tensors
        )
        for name, index in self.units[weight]:
            values = self.criterion.formula(of_units(activation, index), of_units(gradient, index))
            if index.shape[1] > 1:
                values = values.unflatten(0, index.shape).sum(1)
            self.sums[name] = _plus(self.sums[name], values) if name in self.sums else values
            self.pending[name] -= 1
            if not self.pending[name]:
                self.scores[name] = self.criterion.reduce(self.sums.pop(name))


def _plus(one: Tensor, other: Tensor) -> Tensor:
    """Add values; those at fewer positions are spread evenly."""
    if one.shape[2] < other.shape[2]:
        one, other = other, one
    if other.shape[2] < one.shape[2]:
        other = other.sum(2, keepdim=True) / one.shape[2]
    return one + other
