"""Adapters of torch's own layers, for attributes that repeat a tensor's size (`out_channels`, ...)."""

from typing import Any

from torch import nn

from secateur.framework.network.layers import CONVOLUTIONS, TRANSPOSED, is_depthwise
from secateur.framework.pruning.adapters import attention as attention  # registers its adapters
from secateur.framework.pruning.adapters.base import Kept, adapter
from secateur.framework.pruning.adapters.base import follow_shapes as follow_shapes
from secateur.framework.pruning.adapters.base import heads_of as heads_of
from secateur.framework.pruning.adapters.resized_layers import of_any_size, without_channels


@adapter(*CONVOLUTIONS)
def _convolution(module: Any, kept: Kept) -> None:
    if module.groups > 1:
        module.groups = _kept_groups(module, kept, module.groups)
    module.out_channels = module.weight.shape[0]
    module.in_channels = module.weight.shape[1] * module.groups
    if module.weight.numel() == 0:
        without_channels(module)


def _kept_groups(module: Any, kept: Kept, groups: int) -> int:
    """Return the number of groups of a layer: a group remains if one of its outputs is kept."""
    dense = module.__dict__.setdefault("dense_groups", groups)
    rows = kept("weight", 0)
    if rows is None:
        return groups
    size = kept.lineage.dense[kept.name("weight")][0] // dense
    return max(1, len((rows // size).unique()))


@adapter(*TRANSPOSED)
def _transposed(module: Any, kept: Kept) -> None:
    if module.groups > 1:
        module.__dict__.setdefault("dense_depthwise", is_depthwise(module))
    if is_depthwise(module):  # one conv group per kept channel
        module.groups = max(1, len(module.weight))
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
    else:
        _without_tensors(module, kept)


@adapter(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(module: Any, kept: Kept) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    else:
        _without_tensors(module, kept)


@adapter(nn.GroupNorm)
def _group_norm(module: Any, kept: Kept) -> None:
    if module.weight is None:
        _without_tensors(module, kept)
        return
    module.num_groups = _kept_groups(module, kept, module.num_groups)
    module.num_channels = len(module.weight)
    if len(module.weight) == 0:
        without_channels(module)


@adapter(nn.Unflatten)
def _without_tensors(module: Any, kept: Kept) -> None:
    if kept.lineage.kept:  # an uncut network is unchanged
        of_any_size(module)


@adapter(nn.Embedding, nn.EmbeddingBag)
def _embedding(module: Any, kept: Kept) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


@adapter(nn.PReLU)
def _prelu(module: Any, kept: Kept) -> None:
    module.num_parameters = len(module.weight)
