"""Budgets: target sparsity as a share of the dense network's nodes, weights, parameters, multiply-adds or latency.

A budget predicts by arithmetic which share a selection of channels removes. If the prediction is not exact, it can
also measure a network that is cut that way.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import Tensor, nn

from secateur.framework.network.latency import measure_latency
from secateur.framework.network.layers import (
    named_tensors,
    output_dim,
    prunable_layers,
    prunable_weights,
    tensor_name,
)
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.size import count_macs, macs_by_tensor
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups
from secateur.framework.pruning.channels.slicing import kept_positions, shrink
from secateur.framework.pruning.scoring.channel_sums import units_per_channel
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

Keeps = Mapping[str, Tensor]
BUDGETS = ("nodes", "weights", "params", "macs", "latency")
#: maximum deviation from the target share; larger for latency, which is measured
TOLERANCE, LATENCY_TOLERANCE = 0.01, 0.05


class Budget(ABC):
    """Base class: the share of the dense network that a selection removes, in [0, 1].

    Attributes:
        name: Name of the budget, one of BUDGETS.
        tolerance: Maximum deviation of a selection from the target; None to accept the nearest selection.
        exact: Whether `predicted` equals the share of a network that is cut.
    """

    name: str
    tolerance: float | None = TOLERANCE
    exact = True

    @abstractmethod
    def predicted(self, keep: Keeps) -> float:
        """Predict by arithmetic the share that is removed if only `keep` remains.

        Masks of prunable weights count for the budgets of nodes and weights. Other names that are no group, such
        as the inputs of the network, have no effect.
        """

    def actual(self, keep: Keeps) -> float:
        """Return the share that is removed in a network that is cut to `keep`."""
        return self.predicted(keep)

    def now(self) -> float:
        """Return the share that is already removed."""
        return self.actual({})


class Nodes(Budget):
    """Output units of hidden layers; units without a nonzero weight or without inputs count as removed."""

    name = "nodes"
    tolerance = None

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        lineage = lineage_of(model)
        self._sizes = _Sizes(model, groups)
        #: weight of each hidden layer -> dimension of its outputs
        self._hidden: dict[str, int] = {}
        self.dense = 0
        for name, module in prunable_layers(model).items():
            weight, dim = tensor_name(name, "weight"), output_dim(module)
            if name not in (lineage.output_layers or ()) and weight in self._sizes.shape:
                self._hidden[weight] = dim
                self.dense += lineage.dense.get(weight, self._sizes.shape[weight])[dim]
        self.per_channel = {name: units_per_channel(model, group) for name, group in groups.items()}
        self._masked = _Masked(prunable_weights(model), model, groups)

    def predicted(self, keep: Keeps) -> float:
        """Return 1 - remaining units / units of the dense network."""
        left, alive = 0, self._masked.after(keep)
        for weight, shape in self._sizes.after(keep, list(self._hidden)).items():
            dim = self._hidden[weight]
            if weight in alive:
                left += int(alive[weight].movedim(dim, 0).flatten(1).any(dim=1).sum())
            else:
                left += shape[dim] if prod(shape) else 0
        return 1 - left / max(1, self.dense)


class _Sizes:
    """Shapes of all tensors before and after a cut."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        tensors = list(named_tensors(model).items())
        self.shape = {name: tuple(tensor.shape) for name, tensor in tensors}
        first = {id(tensor): name for name, tensor in reversed(tensors)}
        self._first = {name: first[id(tensor)] for name, tensor in tensors}
        self._groups = groups
        self._owned: dict[str, dict[int, list[tuple[str, int]]]] = {}
        for name, group in groups.items():
            for part in group.slices:
                dims = self._owned.setdefault(part.tensor, {})
                dims.setdefault(part.dim, []).append((name, part.index.shape[1]))

    def after(self, keep: Keeps, tensors: Iterable[str]) -> dict[str, list[int]]:
        """Return the shape of each tensor if only `keep` remains."""
        gone = {name: len(mask) - int(mask.sum()) for name, mask in keep.items() if name in self._groups}
        left = {}
        for tensor in tensors:
            sizes = list(self.shape[tensor])
            for dim, owners in self._owned.get(self._first[tensor], {}).items():
                sizes[dim] -= sum(gone.get(name, 0) * width for name, width in owners)
            left[tensor] = sizes
        return left


class _Masked:
    """Weights with entries that are zero, as after masking; these entries count as removed."""

    def __init__(self, weights: Mapping[str, Tensor], model: nn.Module, groups: Groups) -> None:
        living = ((name, weight.detach() != 0) for name, weight in weights.items())
        self._alive = {name: alive for name, alive in living if not bool(alive.all())}
        self._weights, self._model, self._groups = weights, model, groups

    def after(self, keep: Keeps) -> dict[str, Tensor]:
        """Return the masks of nonzero entries of these weights, in their shapes if only `keep` remains."""
        masked = {name: mask for name, mask in keep.items() if name in self._weights}
        masked |= {name: masked.get(name, alive) & alive for name, alive in self._alive.items()}
        if not masked:
            return {}
        removed = {name: ~mask.cpu() for name, mask in keep.items() if name in self._groups}
        kept, _ = kept_positions(self._model, removed, self._groups)
        return {name: shrink(alive, kept.get(name, {})) for name, alive in masked.items()}


class Entries(Budget):
    """Entries of all parameters, or of the prunable weights only, whose zeros count as removed."""

    def __init__(self, model: nn.Module, groups: Groups, prunable_only: bool) -> None:
        self.name = "weights" if prunable_only else "params"
        self._counted = list(prunable_weights(model) if prunable_only else dict(model.named_parameters()))
        self._sizes = _Sizes(model, groups)
        dense = lineage_of(model).dense
        self._dense = sum(prod(dense.get(name, self._sizes.shape[name])) for name in self._counted)
        self._masked = _Masked(prunable_weights(model) if prunable_only else {}, model, groups)

    def predicted(self, keep: Keeps) -> float:
        """Return 1 - remaining entries / entries of the dense network."""
        left, alive = 0, self._masked.after(keep)
        for name, shape in self._sizes.after(keep, self._counted).items():
            left += int(alive[name].count_nonzero()) if name in alive else prod(shape)
        return 1 - left / max(1, self._dense)


class Macs(Budget):
    """Multiply-adds of the forward pass of one sample."""

    name = "macs"

    def __init__(self, model: nn.Module, groups: Groups, example: Tensor) -> None:
        self._model, self._groups, self._example = model, groups, example
        self._of, self._rest = macs_by_tensor(model, example)
        self.exact = self._rest == 0
        self._sizes = _Sizes(model, groups)
        self._dense = dense_macs(model, example)

    def predicted(self, keep: Keeps) -> float:
        """Predict the share: the work of a weight scales with its size, work between activations is constant."""
        left = self._sizes.after(keep, self._of)
        total = self._rest + sum(
            macs * prod(left[name]) / max(1, prod(self._sizes.shape[name])) for name, macs in self._of.items()
        )
        return 1 - total / max(1, self._dense)

    def freed(self, name: str) -> float:
        """Return the multiply-adds removed with one channel of a group: those of its producers and readers."""
        mask = torch.arange(self._groups[name].channels) > 0
        return self._dense * (self.predicted({name: mask}) - self.predicted({}))

    def actual(self, keep: Keeps) -> float:
        """Count the multiply-adds of a copy that is cut to `keep`."""
        smaller = _smaller(self._model, self._groups, keep, self._example) if keep else self._model
        return 1 - count_macs(smaller, self._example)[0] / max(1, self._dense)


class Latency(Macs):
    """Latency of a forward pass of the example batch on its device, relative to that of the dense network."""

    name = "latency"
    tolerance = LATENCY_TOLERANCE
    REPEATS = 15

    def __init__(self, model: nn.Module, groups: Groups, example: Tensor, dense: nn.Module) -> None:
        super().__init__(model, groups, example)
        self.exact = False
        self._twin = dense

    def actual(self, keep: Keeps) -> float:
        """Return 1 - median latency / median latency of the dense network, measured alternately."""
        smaller = _smaller(self._model, self._groups, keep, self._example) if keep else self._model
        slow, fast = measure_latency(
            [self._twin, smaller], self._example, batches=(len(self._example),), repeats=self.REPEATS
        )
        size = str(len(self._example))
        return 1 - fast[size] / slow[size]


def dense_macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-adds of one sample before the first cut.

    For a network that was loaded cut from a file they are estimated: the work of each weight is scaled by its
    size.
    """
    lineage = lineage_of(model)
    key = tuple(example.shape[1:])
    if key not in lineage.dense_macs:
        of, rest = macs_by_tensor(model, example)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        scaled = sum(
            macs * prod(lineage.dense.get(name, shapes[name])) / max(1, prod(shapes[name]))
            for name, macs in of.items()
        )
        lineage.dense_macs[key] = round(scaled + rest)
    return lineage.dense_macs[key]


def make_budget(
    name: str, model: nn.Module, groups: Mapping[str, ChannelGroup], example: Tensor, dense: nn.Module | None
) -> Budget:
    """Create a budget by name for the present network; `dense` is the reference network of the latency."""
    if name == "nodes":
        return Nodes(model, groups)
    if name in ("weights", "params"):
        return Entries(model, groups, prunable_only=name == "weights")
    if name == "macs":
        return Macs(model, groups, example)
    if name == "latency":
        assert dense is not None
        return Latency(model, groups, example, dense)
    raise UsageError(unknown("budget", name, BUDGETS))


def _smaller(model: nn.Module, groups: Groups, keep: Keeps, example: Tensor) -> nn.Module:
    with torch.no_grad():
        twin = copy.deepcopy(model)
        removed = {name: mask for name, mask in keep.items() if name in groups}
        cut(twin, removed, groups, example_input=example)
    return twin
