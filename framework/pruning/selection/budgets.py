"""Budgets: target sparsity as a share of the dense network's nodes, weights, parameters, multiply-adds or latency.

A budget predicts by arithmetic which share a selection of channels removes. If the prediction is not exact, it can
also measure a network that is cut that way.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import inf, prod
from typing import Any

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

    Args:
        model: The network.
        groups: Its channel groups.

    Attributes:
        name: Name of the budget, one of BUDGETS.
        tolerance: Maximum deviation of a selection from the target; inf to accept the nearest selection.
        exact: Whether `predicted` equals the share of a network that is cut.
    """

    name: str
    tolerance = TOLERANCE
    exact = True

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self._model, self._groups = model, groups
        tensors = named_tensors(model)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}
        self._first = {name: first[id(tensor)] for name, tensor in tensors.items()}
        #: tensor -> dimension, group and number of positions of each of its channels
        self._owners: dict[str, list[tuple[int, str, int]]] = {}
        for name, group in groups.items():
            for part in group.slices:
                self._owners.setdefault(part.tensor, []).append((part.dim, name, part.index.shape[1]))

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

    def _shapes_after(self, keep: Keeps, tensors: Iterable[str]) -> dict[str, list[int]]:
        """Return the shape of each tensor if only `keep` remains."""
        gone = {name: len(mask) - int(mask.sum()) for name, mask in keep.items() if name in self._groups}
        left = {}
        for tensor in tensors:
            left[tensor] = list(self._shapes[tensor])
            for dim, name, width in self._owners.get(self._first.get(tensor, tensor), ()):
                left[tensor][dim] -= gone.get(name, 0) * width
        return left


class Counted(Budget):
    """Base class of the budgets that count units or entries of tensors; masked ones count as removed.

    Args:
        model, groups: See `Budget`.
        dims: Counted tensor -> the dimension of its units, or None to count its entries.
        weights: Weights by name whose zeros count as removed.
    """

    def __init__(
        self, model: nn.Module, groups: Groups, dims: Mapping[str, int | None], weights: Mapping[str, Tensor]
    ) -> None:
        super().__init__(model, groups)
        self._dims, self._weights = dims, weights
        self._shapes |= {name: tuple(weight.shape) for name, weight in weights.items()}
        living = ((name, weight.detach() != 0) for name, weight in weights.items())
        self._alive = {name: alive for name, alive in living if not bool(alive.all())}
        dense = self._shapes | lineage_of(model).dense
        self.dense = sum(self._size(dim, dense[name]) for name, dim in dims.items())

    def predicted(self, keep: Keeps) -> float:
        """Return 1 - remaining units or entries / those of the dense network."""
        left, alive = 0, self._alive_after(keep)
        for name, shape in self._shapes_after(keep, self._dims).items():
            dim = self._dims[name]
            if name not in alive:
                left += self._size(dim, shape)
            elif dim is None:
                left += int(alive[name].count_nonzero())
            else:
                left += int(alive[name].movedim(dim, 0).flatten(1).any(dim=1).sum())
        return 1 - left / max(1, self.dense)

    def _size(self, dim: int | None, shape: Sequence[int]) -> int:
        return prod(shape) if dim is None or not prod(shape) else shape[dim]

    def _alive_after(self, keep: Keeps) -> dict[str, Tensor]:
        """Return the masks of the weights with zeros, in their shapes if only `keep` remains."""
        masked = {name: mask for name, mask in keep.items() if name in self._weights}
        masked |= {name: masked.get(name, alive) & alive for name, alive in self._alive.items()}
        if not masked:
            return {}
        removed = {name: ~mask.cpu() for name, mask in keep.items() if name in self._groups}
        kept, _ = kept_positions(self._model, removed, self._groups)
        return {name: shrink(alive, kept.get(self._first.get(name, name), {})) for name, alive in masked.items()}


class Nodes(Counted):
    """Output units of hidden layers; units without a nonzero weight or without inputs count as removed."""

    name = "nodes"
    tolerance = inf

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        outputs = lineage_of(model).output_layers or ()
        layers = {name: layer for name, layer in prunable_layers(model).items() if name not in outputs}
        dims = {tensor_name(name, "weight"): output_dim(layer) for name, layer in layers.items()}
        # by layer, not by parameter: a shared weight counts for each of its layers, and a parametrised one counts
        weights: dict[str, Any] = {tensor_name(name, "weight"): layer.weight for name, layer in layers.items()}
        super().__init__(model, groups, dims, weights)
        self.per_channel = {name: units_per_channel(model, group) for name, group in groups.items()}


class Entries(Counted):
    """Entries of all parameters, or of the prunable weights only, whose zeros count as removed."""

    def __init__(self, model: nn.Module, groups: Groups, name: str) -> None:
        self.name = name
        weights = prunable_weights(model) if name == "weights" else {}
        counted = weights if name == "weights" else dict(model.named_parameters())
        super().__init__(model, groups, dict.fromkeys(counted), weights)


class Macs(Budget):
    """Multiply-adds of the forward pass of one sample."""

    name = "macs"

    def __init__(self, model: nn.Module, groups: Groups, example: Tensor) -> None:
        super().__init__(model, groups)
        self._example = example
        self._of, self._rest = macs_by_tensor(model, example)
        self.exact = self._rest == 0
        self._dense = dense_macs(model, example)

    def predicted(self, keep: Keeps) -> float:
        """Predict the share: the work of a weight scales with its size, work between activations is constant."""
        total = _scaled(self._of, self._shapes, self._shapes_after(keep, self._of)) + self._rest
        return 1 - total / max(1, self._dense)

    def freed(self, name: str) -> float:
        """Return the multiply-adds removed with one channel of a group: those of its producers and readers."""
        mask = torch.arange(self._groups[name].channels) > 0
        return self._dense * (self.predicted({name: mask}) - self.predicted({}))

    def actual(self, keep: Keeps) -> float:
        """Count the multiply-adds of a copy that is cut to `keep`."""
        return 1 - count_macs(self._smaller(keep), self._example)[0] / max(1, self._dense)

    def _smaller(self, keep: Keeps) -> nn.Module:
        """Return a copy of the network that is cut to `keep`, or the network itself if nothing is cut."""
        if not keep:
            return self._model
        with torch.no_grad():
            twin = copy.deepcopy(self._model)
            channels = {name: mask for name, mask in keep.items() if name in self._groups}
            cut(twin, channels, self._groups, example_input=self._example)
        return twin


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
        size, networks = len(self._example), [self._twin, self._smaller(keep)]
        slow, fast = measure_latency(networks, self._example, batches=(size,), repeats=self.REPEATS)
        return 1 - fast[str(size)] / slow[str(size)]


def dense_macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-adds of one sample before the first cut.

    For a network that was loaded cut from a file they are estimated: the work of each weight is scaled by its
    size.
    """
    lineage = lineage_of(model)
    key = tuple(example.shape[1:])
    if key not in lineage.dense_macs:
        of, rest = macs_by_tensor(model, example)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        lineage.dense_macs[key] = round(_scaled(of, shapes, shapes | lineage.dense) + rest)
    return lineage.dense_macs[key]


def _scaled(
    macs_of: Mapping[str, float], now: Mapping[str, Sequence[int]], then: Mapping[str, Sequence[int]]
) -> float:
    """Return the sum of the work of all weights, that of each scaled by its size."""
    return sum(macs * prod(then[name]) / max(1, prod(now[name])) for name, macs in macs_of.items())


def make_budget(
    name: str, model: nn.Module, groups: Mapping[str, ChannelGroup], example: Tensor, dense: nn.Module | None
) -> Budget:
    """Create a budget by name for the present network; `dense` is the reference network of the latency."""
    if name == "nodes":
        return Nodes(model, groups)
    if name in ("weights", "params"):
        return Entries(model, groups, name)
    if name == "macs":
        return Macs(model, groups, example)
    if name == "latency":
        assert dense is not None
        return Latency(model, groups, example, dense)
    raise UsageError(unknown("budget", name, BUDGETS))
