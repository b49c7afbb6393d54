"""Gates after batch norms: the norm that follows each layer, and the gradients of the gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import output_dim, prunable_layers, tensor_name, unit_is_channel
from secateur.framework.network.preserve import preserved_state
from secateur.framework.pruning.channels.consumers import Reader, sole_norms
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.scoring.channel_sums import add_units, per_unit, producer_parameters
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gradients import add_gradients
from secateur.utils.errors import UsageError


def sole_following_norms(model: nn.Module, layers: Iterable[str], sample: Tensor) -> dict[str, str]:
    """Return layer -> sole reader of its outputs, a batch norm with running statistics and no other input."""
    none = torch.zeros(0, dtype=torch.int64)
    readers = [Reader(name, model.get_submodule(name), none, none) for name in layers]
    with preserved_state(model), torch.no_grad():
        return sole_norms(model, readers, lambda: model(sample))


def norm_gate_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Mapping[str, ChannelGroup]
) -> Iterator[dict[str, Tensor]]:
    """Yield phi * dL/dphi of every channel for each batch, `(channels,)` per group; iterate inside `scoring`.

    phi multiplies the output of the batch norm after a producer, which for a norm with scale and shift gives
    scale * dL/dscale + shift * dL/dshift. Without a norm, phi multiplies the producer's own output:
    sum w * dL/dw + b * dL/db. Several producers of one channel are summed. L is the mean loss of the batch.
    """
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise UsageError("the criterion needs data and got no batch")
    producers = {name for group in groups.values() for name in group.producers}
    norms = sole_following_norms(model, _layers(model, producers), first[0][:1])
    bare = {
        name: parameter
        for name, parameter in producer_parameters(model, groups).items()
        if name.rpartition(".")[0] not in norms
    }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    gates = {name: _gate(model, name) for name in norms}
    with ExitStack() as stack:
        for name, norm in norms.items():
            handle = model.get_submodule(norm).register_forward_hook(_multiply(gates[name]))
            stack.callback(handle.remove)
        leaves = [*gates.values(), *(parameter.requires_grad_(True) for parameter in bare.values())]
        for batch in chain([first], remaining):
            for leaf in leaves:
                leaf.grad = None
            samples, _ = add_gradients(model, [batch], loss, leaves)
            units = {tensor_name(name, "weight"): _gradient(gate) for name, gate in gates.items()}
            for name, parameter in bare.items():
                dim = output_dim(model.get_submodule(name.rpartition(".")[0]))
                units[name] = per_unit(parameter.detach(), _gradient(parameter), dim)
            yield {name: total / samples for name, total in add_units(groups, units).items()}


def _layers(model: nn.Module, producers: Iterable[str]) -> list[str]:
    """Return the producers that are layers with one channel per unit; a bare parameter has no output to gate."""
    modules = prunable_layers(model)
    return [name for name in producers if name in modules and unit_is_channel(modules[name])]


def _gate(model: nn.Module, layer: str) -> Tensor:
    module: Any = model.get_submodule(layer)
    units = module.weight.shape[output_dim(module)]
    return torch.ones(units, device=module.weight.device, dtype=module.weight.dtype).requires_grad_(True)


def _multiply(gate: Tensor) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * gate.view(-1, *[1] * (output.dim() - 2))

    return hook


def _gradient(leaf: Tensor) -> Tensor:
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
