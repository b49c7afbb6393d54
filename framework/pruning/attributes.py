"""The adapters of torch's own layers: attributes that repeat a tensor's size (`out_channels`, ...)."""

from __future__ import annotations

from typing import Any

from torch import nn

from framework.prunable import CONVOLUTIONS, TRANSPOSED
from framework.pruning import attention as attention  # registers its adapters
from framework.pruning.adapters import Kept, adapter
from framework.pruning.adapters import follow_shapes as follow_shapes
from framework.pruning.adapters import heads_of as heads_of
from framework.pruning.empty import without_channels


@adapter(*CONVOLUTIONS)
def _convolution(module: Any, kept: Kept) -> None:
    rows, per_group = kept("weight", 0), module.weight.shape[1]
    if module.groups > 1:
        dense = module.__dict__.setdefault("dense_groups", module.groups)
        if rows is not None:  # a conv group is there as long as one of its outputs is
            size = kept.lineage.dense[kept.name("weight")][0] // dense
            module.groups = max(1, len((rows // size).unique()))
    module.out_channels = module.weight.shape[0]
    module.in_channels = per_group * module.groups
    if module.weight.numel() == 0:
        without_channels(module)


@adapter(*TRANSPOSED)
def _transposed(module: Any, kept: Kept) -> None:
    module.in_channels = module.weight.shape[0]
    module.out_channels = module.weight.shape[1] * module.groups


@adapter(nn.Linear)
def _linear(module: Any, kept: Kept) -> None:
    module.out_features, module.in_features = module.weight.shape


@adapter(nn.modules.batchnorm._NormBase)
def _norm(module: Any, kept: Kept) -> None:
    sized = module.weight if module.weight is not None else module.running_mean
    if sized is not None:
        module.num_features = len(sized)
        if len(sized) == 0:
            without_channels(module)


@adapter(nn.LayerNorm)
def _layer_norm(module: Any, kept: Kept) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


@adapter(nn.PReLU)
def _prelu(module: Any, kept: Kept) -> None:
    module.num_parameters = len(module.weight)
