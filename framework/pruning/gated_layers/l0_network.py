"""Networks with hard-concrete gates: conversion of any network, and back to a smaller plain network."""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.batch_norm import batch_norms_after
from secateur.framework.network.layers import prunable_layers, tensor_name
from secateur.framework.network.lineage import lineage_of, same_network
from secateur.framework.network.masks import Masks
from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import preserved_state
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, free_groups
from secateur.framework.pruning.gated_layers.hard_concrete import LAYERS, L0BatchNorm2d, L0Conv2d, l0_layers
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.pruning.surgery.folding import foldable


def add_l0_gates(model: nn.Module, sample: Tensor, close_norms: bool = True, **gates: Any) -> list[str]:
    """Add hard-concrete gates to the Conv2d and Linear layers of a network, in place, and return their names.

    Weights keep their values, names and shapes. Layers without gates are those that a forward pass does not call
    (another module uses their weights), those with tied parameters, and third-party subclasses.

    Args:
        model: The network.
        sample: A batch that the model accepts.
        close_norms: Whether the batch norm after a convolution is zero where the gate is closed.
        **gates: Options of `HardConcrete.add_log_alpha`.
    """
    names = _callable_layers(model, sample)
    with same_network(model):
        for name in names:
            layer: Any = model.get_submodule(name)
            layer.__class__ = LAYERS[type(layer)]
            layer.add_log_alpha(**gates)
        closing = [name for name in names if close_norms and isinstance(model.get_submodule(name), L0Conv2d)]
        for name, norm in batch_norms_after(model, closing, lambda: model(sample), directly=True).items():
            module: Any = model.get_submodule(norm)
            if type(module) is nn.BatchNorm2d:
                module.__class__ = L0BatchNorm2d
                module.__dict__["gated_by"] = (model.get_submodule(name),)
    return names


def _callable_layers(model: nn.Module, sample: Tensor) -> list[str]:
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    layers = {
        name: module
        for name, module in prunable_layers(model).items()
        if type(module) in LAYERS and all(owners[id(parameter)] == 1 for parameter in module.parameters())
    }
    called: set[str] = set()
    hooks = [(module, lambda *_, name=name: called.add(name)) for name, module in layers.items()]
    with preserved_state(model), torch.no_grad(), hooked(hooks):
        model(sample)
    return [name for name in layers if name in called]


@torch.no_grad()
def without_gates(model: nn.Module) -> nn.Module:
    """Return a plain copy, equivalent in eval mode, whose weights are multiplied by the gates."""
    plain = copy.deepcopy(model)
    with same_network(plain):
        for module in plain.modules():
            if isinstance(module, L0BatchNorm2d):
                _close(module)
        for layer in l0_layers(plain).values():
            gates = layer.mean_gates()
            shape = [-1 if dim == layer.gate_dim else 1 for dim in range(layer.weight.dim())]
            layer.weight.mul_(gates.view(shape))
            if layer.gate_dim == 0 and layer.bias is not None:
                layer.bias.mul_(gates)
            del layer.log_alpha
            for name in ("temperature", "local_rep", "l0_reg", "rho", "samples", "is_open"):
                layer.__dict__.pop(name, None)
            layer.__class__ = next(kind for kind, gated in LAYERS.items() if type(layer) is gated)
    return plain


def _close(norm: Any) -> None:
    """Make a norm map zero to zero where the gate is closed, and convert it to a plain one."""
    closed = norm.gated_by[0].mean_gates() == 0
    if norm.bias is not None:
        norm.bias[closed] = 0
    if norm.running_mean is not None:
        norm.running_mean[closed] = 0
    del norm.__dict__["gated_by"]
    norm.__class__ = nn.BatchNorm2d


@dataclass(frozen=True)
class Closed:
    """Numbers of gates after `cut_closed`.

    Attributes:
        gates: All gates.
        closed: Closed gates: `cut` + `left`.
        left: Closed gates whose weights are still in the tensors, masked to zero.
        inputs: Those of `left` on the network's own inputs, which are masked and never cut.
    """

    gates: int
    closed: int
    left: int
    inputs: int = 0

    @property
    def cut(self) -> int:
        """Closed gates whose inputs or channels were removed from the tensors."""
        return self.closed - self.left


def cut_closed(model: nn.Module, groups: Groups, sample: Tensor) -> tuple[nn.Module, Closed]:
    """Return a smaller plain copy of a network with hard-concrete gates, and the numbers of cut and masked gates.

    The copy is equivalent to the network in eval mode. A channel is removed if nothing reads it, or if its
    producers output zero, and norms and activations map this zero to zero or to a constant that can be folded
    into the layers that read it. `groups` are those of the plain network, `sample` is a batch that it accepts.
    """
    layers = l0_layers(model)
    plain = without_gates(model)
    closed = {name: (layer.mean_gates() == 0).cpu() for name, layer in layers.items()}
    unread = _removed(plain, groups, _unread)
    smaller = cut(plain, {name: ~off for name, off in unread.items()}, groups)
    silent = foldable(plain, _removed(plain, smaller, _silent), smaller, sample)
    cut(plain, {name: ~off for name, off in silent.items()}, smaller, fold=True, example_input=sample)
    left = inputs = 0
    read = {(part.tensor, part.dim) for group in groups.values() for part in group.slices}
    for name, layer in layers.items():
        weight = tensor_name(name, "weight"), layer.gate_dim
        uncut = lineage_of(plain).left_since(lineage_of(model).kept, *weight)
        held = _hold(plain, name, layer.gate_dim, closed[name] if uncut is None else closed[name][uncut])
        left += held
        inputs += held if layer.gate_dim == 1 and weight not in read else 0
    counted = int(sum(int(mask.sum()) for mask in closed.values()))
    return plain, Closed(sum(len(mask) for mask in closed.values()), counted, left, inputs)


def _removed(model: nn.Module, groups: Groups, is_gone: Any) -> dict[str, Tensor]:
    """Return the removed channels of the free groups, without the first channel if these are all."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    removed = {name: is_gone(parameters, group) for name, group in free_groups(groups).items()}
    for off in removed.values():
        off[0] &= ~off.all()
    return removed


def _zero(parameters: Mapping[str, Tensor], tensor: str, dim: int, index: Tensor) -> Tensor:
    """Return `(channels,)`: whether all entries that the channel owns along this dimension are zero."""
    values = parameters[tensor].detach()
    zero = ~values.movedim(dim, 0).flatten(1).any(1) if values.dim() > 1 else values == 0
    return zero.cpu()[index].all(1)


def _silent(parameters: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    """Return the channels whose producers have zero weights and biases."""
    parts = [_zero(parameters, *part) for part in group.produced]
    return torch.stack(parts).all(0)


def _unread(parameters: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    """Return the channels that all their readers multiply by zero."""
    produced = {(part.tensor, part.dim) for part in group.produced}
    rows = {(tensor_name(layer, "weight"), 0) for layer in group.layers}  # of depthwise layers
    parts = [
        _zero(parameters, *part)
        for part in group.slices
        if (part.tensor, part.dim) not in produced | rows
        and part.tensor in parameters
        and parameters[part.tensor].dim() > 1
    ]
    return torch.stack(parts).all(0) if parts else torch.zeros(group.channels, dtype=torch.bool)


def _hold(model: nn.Module, name: str, dim: int, closed: Tensor) -> int:
    """Mask the weights of the layer's closed gates that were not cut, and return the number of these gates."""
    if not bool(closed.any()):
        return 0
    layer: Any = model.get_submodule(name)
    shape = [-1 if axis == dim else 1 for axis in range(layer.weight.dim())]
    keep = {tensor_name(name, "weight"): ~closed.view(shape).expand(layer.weight.shape)}
    if dim == 0 and layer.bias is not None:
        keep[tensor_name(name, "bias")] = ~closed
    Masks(model).hold(keep)
    return int(closed.sum())
