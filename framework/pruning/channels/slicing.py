"""Slicing of tensors: the kept indices of each tensor when channels are cut, and the sliced tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from secateur.framework.network.layers import named_tensors
from secateur.framework.network.lineage import KeptIndices
from secateur.framework.pruning.channels.groups import Groups


class Factor(NamedTuple):
    """A factor for some positions along a dimension of a tensor."""

    dim: int
    positions: Tensor
    factor: float


def rescaling(keep: Mapping[str, Tensor], groups: Groups) -> dict[str, list[Factor]]:
    """Return tensor name -> factors of its query rows, so that attention scores equal those of the masked network.

    `keep` has the kept channels of each group, bool `(channels,)`.
    """
    factors: dict[str, list[Factor]] = {}
    for name, mask in keep.items():
        if bool(mask.any()) and not bool(mask.all()):
            for tensor, dim, index in groups[name].queries:
                factor = Factor(dim, index.flatten(), (int(mask.sum()) / len(mask)) ** 0.5)
                factors.setdefault(tensor, []).append(factor)
    return factors


def rescaled(tensor: Tensor, factors: Sequence[Factor]) -> Tensor:
    """Return a copy of the whole tensor multiplied by these factors, in the same memory format.

    Without factors it is the tensor itself.
    """
    out = tensor.clone() if factors else tensor
    for dim, positions, factor in factors:
        rows = torch.ones(tensor.shape[dim], dtype=tensor.dtype)
        rows[positions] = factor
        out.mul_(rows.to(tensor.device).view([-1 if axis == dim else 1 for axis in range(tensor.dim())]))
    return out


def shrink(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Return the kept entries of `tensor` in its memory format: channels-last stays channels-last.

    `dims` maps a dimension to the kept positions along it.
    """
    if tensor.dim() == 1 and dims:
        return tensor.index_select(0, dims[0].to(tensor.device))
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    physical = tensor.permute(order)
    for dim, index in dims.items():
        physical = physical.index_select(order.index(dim), index.to(tensor.device))
    return physical.permute([order.index(dim) for dim in range(tensor.dim())])


def kept_positions(
    model: nn.Module, removed: Mapping[str, Tensor], groups: Groups
) -> tuple[KeptIndices, dict[tuple[str, int], Tensor]]:
    """Return the kept positions along each cut dimension, and the new position of each old one (-1 if removed).

    `removed` maps a group name to the removed channels, bool `(channels,)`.
    """
    named = named_tensors(model)
    masks: dict[tuple[str, int], Any] = {}  # numpy: thousands of small operations
    for name, off in removed.items():
        rows = off.numpy()
        for tensor, dim, index in groups[name].slices:
            if (tensor, dim) not in masks:
                masks[tensor, dim] = numpy.ones(named[tensor].shape[dim], dtype=bool)
            masks[tensor, dim][index.numpy()[rows].reshape(-1)] = False
    kept_indices: KeptIndices = {}
    positions = {}
    for (tensor, dim), kept in masks.items():
        kept_indices.setdefault(tensor, {})[dim] = torch.from_numpy(numpy.flatnonzero(kept))
        positions[tensor, dim] = torch.from_numpy(numpy.where(kept, kept.cumsum() - 1, -1))
    first_names = {id(named[name]): name for name in kept_indices}
    for name, value in named.items():  # a tied tensor is cut once, and its other names are recorded
        if id(value) in first_names:
            kept_indices.setdefault(name, kept_indices[first_names[id(value)]])
    return kept_indices, positions
