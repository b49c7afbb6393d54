"""Module attributes that repeat a tensor's size (`out_channels`, ...), set from the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from framework.prunable import CONVOLUTIONS, TRANSPOSED


def _convolution(module: Any) -> None:
    out_channels, per_group = module.weight.shape[:2]
    if module.groups > 1 and per_group == 1 and module.groups == module.in_channels:  # filters of one channel
        module.groups = out_channels // (module.out_channels // module.in_channels)
    module.out_channels = out_channels
    module.in_channels = per_group * module.groups


def _transposed(module: Any) -> None:
    module.in_channels = module.weight.shape[0]
    module.out_channels = module.weight.shape[1] * module.groups


def _linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _norm(module: Any) -> None:
    sized = module.weight if module.weight is not None else module.running_mean
    if sized is not None:
        module.num_features = len(sized)


def _layer_norm(module: Any) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _prelu(module: Any) -> None:
    module.num_parameters = len(module.weight)


#: one function per type; the first type that fits is taken
ATTRIBUTES: list[tuple[tuple[type[nn.Module], ...], Callable[[Any], None]]] = [
    (CONVOLUTIONS, _convolution),
    (TRANSPOSED, _transposed),
    ((nn.Linear,), _linear),
    ((nn.modules.batchnorm._NormBase,), _norm),
    ((nn.LayerNorm,), _layer_norm),
    ((nn.PReLU,), _prelu),
]


def follow_shapes(model: nn.Module) -> None:
    """Set every such attribute of the model from the tensors it has now."""
    for module in model.modules():
        for types, update in ATTRIBUTES:
            if isinstance(module, types):
                update(module)
                break
