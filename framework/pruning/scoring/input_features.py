"""Scores of input features: sums over the columns of the layers that read them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateur.framework.network.layers import TRANSPOSED


def input_columns(module: nn.Module, values: Tensor) -> Tensor:
    """What each input of a layer owns of `values`, shaped like its weight: `(inputs, entries)`."""
    conv_groups = int(getattr(module, "groups", 1))
    if isinstance(module, TRANSPOSED):  # (inputs, outputs / groups, ...)
        return values.flatten(1)
    per_group = values.reshape(conv_groups, values.shape[0] // conv_groups, values.shape[1], -1)
    return per_group.transpose(1, 2).flatten(2).flatten(0, 1)


def over_inputs(module: nn.Module, values: Tensor) -> Tensor:
    """A number for each input, `(inputs,)`, for every entry of the layer's weight that reads it."""
    weight: Any = module.weight
    values = values.to(weight.device)
    ones = [1] * (weight.dim() - 2)
    if isinstance(module, TRANSPOSED):
        return values.view(-1, 1, *ones).expand(weight.shape)
    conv_groups = int(getattr(module, "groups", 1))
    rows = values.view(conv_groups, -1).repeat_interleave(weight.shape[0] // conv_groups, 0)
    return rows.view(*rows.shape, *ones).expand(weight.shape)
