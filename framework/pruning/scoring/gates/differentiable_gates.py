"""A network with channel gates that support second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.framework.network.layers import prunable_layers
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.scoring.gates.sites import GateSites

Run = Callable[[Tensor], Any]


@contextmanager
def gated(sites: GateSites, groups: Mapping[str, ChannelGroup]) -> Iterator[tuple[dict[str, Tensor], Run]]:
    """Context manager that yields gates of 1, `(channels,)` per group, and a function that runs the gated network.

    The gates multiply the outputs of modules. A producer without a module of its own, or with a shared weight, is
    gated by multiplying its weight.
    """
    gates = {
        name: torch.ones(group.channels, device=_device(sites), dtype=_dtype(sites)).requires_grad_()
        for name, group in groups.items()
    }
    units: dict[str, Tensor] = {}
    for name, group in groups.items():
        for part in group.produced:
            index = part.index.to(gates[name].device)
            channels = torch.arange(len(index), device=index.device)[:, None].expand(index.shape)
            count = sites.model.get_parameter(part.tensor).shape[part.dim]
            whole = units.get(part.tensor, gates[name].new_ones(count))
            units[part.tensor] = whole.index_put((index.flatten(),), gates[name][channels.flatten()])
    outputs = {
        weight: name for weight, name in sites.outputs().items() if weight in units and _alone(sites, weight)
    }
    handles = []
    try:
        for weight, name in outputs.items():
            layer: Any = sites.model.get_submodule(weight.rpartition(".")[0])
            after = 0 if weight in sites.norms else layer.weight.dim() - 2
            hook = _multiply(units[weight], after, weight in sites.norms)
            handles.append(sites.model.get_submodule(name).register_forward_hook(hook))
        scaled = {
            name: sites.bare[name].detach() * _along(unit, sites.bare[name].dim(), sites.dims[name])
            for name, unit in units.items()
            if name in sites.bare and name not in outputs and _weight(name) not in outputs
        }
        yield gates, lambda inputs: functional_call(sites.model, scaled, (inputs,))
    finally:
        for handle in handles:
            handle.remove()


def _alone(sites: GateSites, weight: str) -> bool:
    """Whether no other module uses the producer's weight."""
    layers = prunable_layers(sites.model)
    parameter: nn.Parameter = sites.model.get_parameter(weight)
    return [id(layer.weight) for layer in layers.values()].count(id(parameter)) == 1


def _weight(name: str) -> str:
    return name[: -len("bias")] + "weight" if name.endswith("bias") else name


def _along(unit: Tensor, dims: int, dim: int) -> Tensor:
    return unit.view([-1 if at == dim else 1 for at in range(dims)])


def _multiply(unit: Tensor, after: int, norm: bool) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        return output * _along(unit, output.dim(), 1 if norm else output.dim() - 1 - after)

    return hook


def _device(sites: GateSites) -> torch.device:
    return next(sites.model.parameters()).device


def _dtype(sites: GateSites) -> torch.dtype:
    return next(sites.model.parameters()).dtype
