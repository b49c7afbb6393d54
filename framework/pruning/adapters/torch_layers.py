"""Adapters of torch's own layers, for attributes that repeat a tensor's size (`out_channels`, ...).

A cut layer of a size that the original does not support is assigned a subclass:

- `FREE`: layers with a size attribute and no tensor of that size, norms without scale and shift and Unflatten,
  take the size from their input and update the attribute.
- `EMPTY`: layers without input or output channels, as in a removed block, which the kernels of torch do not
  support.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor, nn

from secateur.framework.network.batch_norm import BATCH_NORMS
from secateur.framework.network.layers import CONVOLUTIONS, TRANSPOSED, is_depthwise
from secateur.framework.pruning.adapters import attention as attention  # registers its adapters
from secateur.framework.pruning.adapters.base import Kept, adapter
from secateur.framework.pruning.adapters.base import follow_shapes as follow_shapes
from secateur.framework.pruning.adapters.base import heads_of as heads_of
from secateur.utils.subsampled import SubsampledConv2d

INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _subclass(plain: type[nn.Module], prefix: str, forward: Callable[[Any, Tensor], Tensor]) -> type[nn.Module]:
    """Return a subclass with another forward pass, as a global of this module, so that pickle finds it."""
    name = prefix + plain.__name__
    made = type(name, (plain,), {"forward": forward, "__module__": __name__, "__doc__": forward.__doc__})
    globals()[name] = made
    return made


def _last_axes(layer: Any, input: Tensor) -> dict[str, Any]:
    """Normalise over as many of the last axes as before."""
    return {"normalized_shape": tuple(input.shape[-len(layer.normalized_shape) :])}


def _groups(layer: Any, input: Tensor) -> dict[str, Any]:
    """Normalise a group for each channel, or as many groups as before."""
    channels = input.shape[1]
    groups = channels if layer.num_groups == layer.num_channels else layer.num_groups
    return {"num_groups": groups, "num_channels": channels}


def _channels(layer: Any, input: Tensor) -> dict[str, Any]:
    """Normalise any number of channels; an instance norm's input may have no batch axis."""
    axis = input.dim() - layer._get_no_batch_dim() if isinstance(layer, INSTANCE_NORMS) else 1
    return {"num_features": input.shape[axis]}


def _first_size(layer: Any, input: Tensor) -> dict[str, Any]:
    """Compute the first size, the channels, as the input's size divided by the other sizes."""
    sizes = [int(size) for size in layer.unflattened_size]
    inner, whole = prod(sizes[1:]), input.shape[layer.dim]
    if min(sizes) <= 0 or whole % inner:  # torch raises an error
        return {}
    return {"unflattened_size": (whole // inner, *sizes[1:])}


def _free(plain: type[nn.Module], sizes: Callable[[Any, Tensor], dict[str, Any]]) -> type[nn.Module]:
    def forward(self: Any, input: Tensor) -> Tensor:
        for name, value in sizes(self, input).items():
            if getattr(self, name) != value:  # `torch.export` fails on assignments within forward
                setattr(self, name, value)
        out: Tensor = plain.forward(self, input)
        return out

    forward.__doc__ = sizes.__doc__
    return _subclass(plain, "Free", forward)


#: class of torch -> the function that returns the sizes from its input
SIZES: dict[type[nn.Module], Callable[[Any, Tensor], dict[str, Any]]] = {
    nn.LayerNorm: _last_axes,
    nn.RMSNorm: _last_axes,
    nn.GroupNorm: _groups,
    **dict.fromkeys((*INSTANCE_NORMS, *BATCH_NORMS), _channels),
    nn.Unflatten: _first_size,
}
FREE = {plain: _free(plain, sizes) for plain, sizes in SIZES.items()}


def _biases(layer: Any, x: Tensor) -> Tensor:
    """Return the biases at the output positions of the original convolution."""
    padding = layer._reversed_padding_repeated_twice[::-1]  # after and before each axis
    axes = zip(
        x.shape[2:], padding[::2], padding[1::2], layer.kernel_size, layer.stride, layer.dilation, strict=True
    )
    places = [
        (size + after + before - dilation * (kernel - 1) - 1) // stride + 1
        for size, after, before, kernel, stride, dilation in axes
    ]
    # zeros computed from the weight, so that the outputs depend on it in a trace
    value = layer.weight.sum(dim=tuple(range(1, layer.weight.dim())))
    if layer.bias is not None:
        value = value + layer.bias
    out: Tensor = value.reshape(1, -1, *[1] * len(places)).expand(len(x), -1, *places)
    return out


def _unchanged(layer: Any, x: Tensor) -> Tensor:
    """Return the input, which has no channels."""
    return x


#: class of torch -> its forward pass without channels
FORWARDS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _biases),
    **dict.fromkeys((*BATCH_NORMS, nn.GroupNorm), _unchanged),
}
EMPTY = {plain: _subclass(plain, "Empty", forward) for plain, forward in FORWARDS.items()}
EMPTY[SubsampledConv2d] = EMPTY[nn.Conv2d]


@adapter(*CONVOLUTIONS)
def _convolution(module: Any, kept: Kept) -> None:
    if module.groups > 1:
        module.groups = _kept_groups(module, kept, module.groups)
    module.out_channels = module.weight.shape[0]
    module.in_channels = module.weight.shape[1] * module.groups
    _if_empty(module, module.weight)


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


@adapter(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
def _norm(module: Any, kept: Kept) -> None:
    sized = module.weight if module.weight is not None else getattr(module, "running_mean", None)
    if sized is None:
        _without_tensors(module, kept)
        return
    if isinstance(module, nn.GroupNorm):
        module.num_groups = _kept_groups(module, kept, module.num_groups)
        module.num_channels = len(sized)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(sized)
    else:
        module.normalized_shape = tuple(sized.shape)
    _if_empty(module, sized)


@adapter(nn.Unflatten)
def _without_tensors(module: Any, kept: Kept) -> None:
    if kept.lineage.kept:  # an uncut network is unchanged
        module.__class__ = FREE.get(type(module), type(module))


def _if_empty(module: Any, sized: Tensor) -> None:
    if sized.numel() == 0:
        module.__class__ = EMPTY.get(type(module), type(module))


@adapter(nn.Embedding, nn.EmbeddingBag)
def _embedding(module: Any, kept: Kept) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


@adapter(nn.PReLU)
def _prelu(module: Any, kept: Kept) -> None:
    module.num_parameters = len(module.weight)
