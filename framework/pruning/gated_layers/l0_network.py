"""Networks with hard-concrete gates: made from any network, and turned back into a smaller plain one."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers, tensor_name
from secateur.framework.network.lineage import lineage_of, same_network
from secateur.framework.network.masks import Masks
from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import preserved_state
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, free_groups
from secateur.framework.pruning.gated_layers.hard_concrete import LAYERS, L0BatchNorm2d, L0Conv2d, l0_layers
from secateur.framework.pruning.scoring.gates.norm_gates import sole_following_norms
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.pruning.surgery.folding import foldable


def add_l0_gates(model: nn.Module, sample: Tensor, close_norms: bool = True, **gates: Any) -> list[str]:
    """Give every Conv2d and Linear layer hard-concrete gates, in place; returns their names.

    Weights keep their values, names and shapes. Left alone are layers that a forward pass does not call (something
    else uses their weights), those whose weight has a second owner, and subclasses of other people. With
    `close_norms` the batch norm behind a convolution is zero where the gate is closed. `gates` are the options of
    `HardConcrete.add_log_alpha`.
    """
    names = _callable_layers(model, sample)
    with same_network(model):
        for name in names:
            layer: Any = model.get_submodule(name)
            layer.__class__ = LAYERS[type(layer)]
            layer.add_log_alpha(**gates)
        convolutions = [name for name in names if isinstance(model.get_submodule(name), L0Conv2d)]
        behind = sole_following_norms(model, convolutions, sample) if close_norms else {}
        for name, norm in behind.items():
            module: Any = model.get_submodule(norm)
            if type(module) is nn.BatchNorm2d:
                module.__class__ = L0BatchNorm2d
                module.__dict__["gated_by"] = (model.get_submodule(name),)
    return names


def _callable_layers(model: nn.Module, sample: Tensor) -> list[str]:
    owners = Counter(id(one) for module in model.modules() for one in module._parameters.values())
    layers = {
        name: module
        for name, module in prunable_layers(model).items()
        if type(module) in LAYERS and all(owners[id(one)] == 1 for one in module.parameters())
    }
    called: set[str] = set()

    def note(name: str) -> Any:
        return lambda *_: called.add(name)

    with preserved_state(model), torch.no_grad(), hooked((module, note(name)) for name, module in layers.items()):
        model(sample)
    return [name for name in layers if name in called]


@torch.no_grad()
def without_gates(model: nn.Module) -> nn.Module:
    """A plain copy that computes what the network computes in eval mode: the gates are multiplied into weights."""
    plain = copy.deepcopy(model)
    with same_network(plain):
        for module in list(plain.modules()):
            if isinstance(module, L0BatchNorm2d):
                _close(module)
        for layer in l0_layers(plain).values():
            gates = layer.mean_gates()
            shape = [-1 if dim == layer.gate_dim else 1 for dim in range(layer.weight.dim())]
            layer.weight.mul_(gates.view(shape))
            if layer.gate_dim == 0 and layer.bias is not None:
                layer.bias.mul_(gates)
            _become_plain(layer)
    return plain


def _close(norm: Any) -> None:
    """Zero in, zero out, where the gate is closed."""
    closed = norm.gated_by[0].mean_gates() == 0
    if norm.bias is not None:
        norm.bias[closed] = 0
    if norm.running_mean is not None:
        norm.running_mean[closed] = 0
    del norm.__dict__["gated_by"]
    norm.__class__ = nn.BatchNorm2d


def _become_plain(layer: Any) -> None:
    del layer.log_alpha
    for name in ("temperature", "local_rep", "l0_reg", "rho", "samples", "is_open"):
        layer.__dict__.pop(name, None)
    layer.__class__ = next(plain for plain, gated in LAYERS.items() if type(layer) is gated)


@dataclass(frozen=True)
class Closed:
    """What became of the gates: `cut` of the closed ones are gone, `left` stay as zeros that masks hold.

    `inputs` of those left are gates of the network's own inputs, which are masked and never cut.
    """

    gates: int
    closed: int
    left: int
    inputs: int = 0

    @property
    def cut(self) -> int:
        """Closed gates whose inputs or channels are out of the tensors."""
        return self.closed - self.left


def cut_closed(model: nn.Module, groups: Groups, sample: Tensor) -> tuple[nn.Module, Closed]:
    """A plain, smaller copy of a network with hard-concrete gates, and what became of them.

    The copy computes what the network computes in eval mode. `groups` are the channel groups of the plain network.
    A channel goes if nothing reads it, or if its producers put out zero and what becomes of that zero behind norms
    and activations is zero again, or a constant that can move into the layers that read it.
    """
    layers = l0_layers(model)
    plain = without_gates(model)
    closed = {name: (layer.mean_gates() == 0).cpu() for name, layer in layers.items()}
    smaller = cut(plain, _keep(plain, groups, _unread), groups)
    keep = _keep(plain, smaller, _silent)
    off = {name: ~mask for name, mask in keep.items()}
    off = foldable(plain, off, smaller, sample)
    cut(plain, {name: ~gone for name, gone in off.items()}, smaller, fold=True, example_input=sample)
    left = inputs = 0
    read = {(part.tensor, part.dim) for group in groups.values() for part in group.slices}
    for name, layer in layers.items():
        weight = tensor_name(name, "weight"), layer.gate_dim
        held = _hold(plain, name, layer.gate_dim, closed[name][_positions(model, plain, *weight)])
        left += held
        inputs += held if layer.gate_dim == 1 and weight not in read else 0
    counted = int(sum(int(one.sum()) for one in closed.values()))
    return plain, Closed(sum(len(one) for one in closed.values()), counted, left, inputs)


def _keep(model: nn.Module, groups: Groups, is_gone: Any) -> dict[str, Tensor]:
    """Masks of the free groups; at least one channel stays in each."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    keep = {}
    for name, group in free_groups(groups).items():
        mask = ~is_gone(parameters, group)
        if not mask.any():
            mask[0] = True
        keep[name] = mask
    return keep


def _zero(parameters: Mapping[str, Tensor], tensor: str, dim: int, index: Tensor) -> Tensor:
    """`(channels,)`: whether all that the channel owns along this dimension is zero."""
    values = parameters[tensor].detach()
    zero = ~values.movedim(dim, 0).flatten(1).any(1) if values.dim() > 1 else values == 0
    return zero.cpu()[index].all(1)


def _silent(parameters: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    """Channels whose producers have neither weights nor biases left."""
    parts = [_zero(parameters, *part) for part in group.produced]
    return torch.stack(parts).all(0)


def _unread(parameters: Mapping[str, Tensor], group: ChannelGroup) -> Tensor:
    """Channels that every layer which reads them multiplies by zero."""
    produced = {(part.tensor, part.dim) for part in group.produced}
    rows = {(tensor_name(layer, "weight"), 0) for layer in group.layers}  # those of depthwise layers only follow
    parts = [
        _zero(parameters, *part)
        for part in group.slices
        if (part.tensor, part.dim) not in produced | rows
        and part.tensor in parameters
        and parameters[part.tensor].dim() > 1
    ]
    return torch.stack(parts).all(0) if parts else torch.zeros(group.channels, dtype=torch.bool)


def _positions(before: nn.Module, after: nn.Module, tensor: str, dim: int) -> Tensor:
    """Where along `dim` of the tensor before the cut lies what is left of it."""
    size = dict(before.named_parameters())[tensor].shape[dim]
    old = lineage_of(before).kept.get((tensor, dim), torch.arange(lineage_of(before).dense[tensor][dim]))
    assert len(old) == size
    return torch.searchsorted(old, lineage_of(after).kept.get((tensor, dim), old))


def _hold(model: nn.Module, name: str, dim: int, closed: Tensor) -> int:
    """Mask what belongs to the layer's closed gates that are still there; how many these are."""
    if not bool(closed.any()):
        return 0
    layer: Any = model.get_submodule(name)
    shape = [-1 if axis == dim else 1 for axis in range(layer.weight.dim())]
    keep = {tensor_name(name, "weight"): ~closed.view(shape).expand(layer.weight.shape)}
    if dim == 0 and layer.bias is not None:
        keep[tensor_name(name, "bias")] = ~closed
    Masks(model).hold(keep)
    return int(closed.sum())
