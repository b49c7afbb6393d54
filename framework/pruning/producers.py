"""Sums over what produces a channel: the rows and biases of its producers, several producers added."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from framework.prunable import output_dim, tensor_name
from framework.pruning.channels import ChannelGroup


def producer_parameters(
    model: nn.Module, groups: Mapping[str, ChannelGroup], biases: bool = True
) -> dict[str, nn.Parameter]:
    """Weights, and biases where there are any, of every layer that produces a channel of these groups."""
    found: dict[str, nn.Parameter] = {}
    for group in groups.values():
        for name in group.producers:
            module = model.get_submodule(name)
            for attribute in ("weight", "bias") if biases else ("weight",):
                parameter = getattr(module, attribute)
                if parameter is not None:
                    found[tensor_name(name, attribute)] = parameter
    return found


def sum_over_channels(
    groups: Mapping[str, ChannelGroup], parameters: Mapping[str, Tensor], factors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Per channel, the sum of parameter * factor over all its producers' entries: `(channels,)` per group.

    With gradients as factors this is the gradient of a gate on the producers' output.
    """
    units: dict[str, Tensor] = {}
    totals = {}
    for name, group in groups.items():
        total = None
        for part in group.produced:
            if part.tensor not in parameters:
                continue
            if part.tensor not in units:
                parameter = parameters[part.tensor].detach()
                units[part.tensor] = _per_unit(parameter, factors[part.tensor], part.dim)
            each = units[part.tensor][part.index.to(units[part.tensor].device)].sum(dim=1)
            total = each if total is None else total + each
        assert total is not None, f"group {name} has no producer"
        totals[name] = total
    return totals


def _per_unit(parameter: Tensor, factor: Tensor, dim: int) -> Tensor:
    if parameter.dim() == 1:
        return parameter * factor
    return torch.linalg.vecdot(parameter.movedim(dim, 0).flatten(1), factor.movedim(dim, 0).flatten(1))


def units_per_channel(model: nn.Module, group: ChannelGroup) -> int:
    """Output units of prunable layers (depthwise ones included) that go with one channel of the group."""
    units = 0
    for name in group.layers:
        weight, dim = tensor_name(name, "weight"), output_dim(model.get_submodule(name))
        units += sum(part.index.shape[1] for part in group.slices if (part.tensor, part.dim) == (weight, dim))
    return units
