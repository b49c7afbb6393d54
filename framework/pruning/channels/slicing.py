"""Indices that remain of each tensor when channels are cut, and the tensors without the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from secateur.framework.network.layers import named_tensors
from secateur.framework.network.lineage import Staying
from secateur.framework.pruning.channels.groups import Groups


class Factor(NamedTuple):
    """What some positions along a dimension of a tensor are multiplied by."""

    dim: int
    positions: Tensor
    factor: float


def rescaling(keep: Mapping[str, Tensor], groups: Groups) -> dict[str, list[Factor]]:
    """What queries have to be multiplied by, so that scores of attention are those of the masked network: tensor
    name -> its rows and their factors."""
    found: dict[str, list[Factor]] = {}
    for name, mask in keep.items():
        if len(mask) and bool(mask.any()):
            for tensor, dim, index in groups[name].queries:
                factor = Factor(dim, index.flatten(), (int(mask.sum()) / len(mask)) ** 0.5)
                found.setdefault(tensor, []).append(factor)
    return found


def rescaled(tensor: Tensor, factors: Sequence[Factor]) -> Tensor:
    """A copy with these factors, in the layout of memory that it has; not yet cut."""
    out = tensor.clone()
    for dim, positions, factor in factors:
        rows = torch.ones(tensor.shape[dim], dtype=tensor.dtype)
        rows[positions] = factor
        out.mul_(rows.to(tensor.device).view([-1 if one == dim else 1 for one in range(tensor.dim())]))
    return out


def shrink(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The entries of `tensor` that stay, laid out in memory as it is (channels-last stays channels-last)."""
    if tensor.dim() == 1 and dims:
        return tensor.index_select(0, dims[0].to(tensor.device))
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    physical = tensor.permute(order)
    for dim, index in dims.items():
        physical = physical.index_select(order.index(dim), index.to(tensor.device))
    return physical.permute([order.index(dim) for dim in range(tensor.dim())])


def what_stays(
    model: nn.Module, removed: Mapping[str, Tensor], groups: Groups
) -> tuple[Staying, dict[tuple[str, int], Tensor]]:
    """Positions that stay along each cut dimension, and the new position of each old one (-1 where gone)."""
    named = named_tensors(model)
    stays: dict[tuple[str, int], Any] = {}  # numpy: thousands of small operations
    for name, off in removed.items():
        gone = off.numpy()
        for tensor, dim, index in groups[name].slices:
            if (tensor, dim) not in stays:
                stays[tensor, dim] = numpy.ones(named[tensor].shape[dim], dtype=bool)
            stays[tensor, dim][index.numpy()[gone].reshape(-1)] = False
    staying: Staying = {}
    positions = {}
    for (tensor, dim), kept in stays.items():
        staying.setdefault(tensor, {})[dim] = torch.from_numpy(numpy.flatnonzero(kept))
        positions[tensor, dim] = torch.from_numpy(numpy.where(kept, kept.cumsum() - 1, -1))
    first_names = {id(named[name]): name for name in staying}
    for name, one in named.items():  # a tied tensor is cut once, and its other names are recorded
        if id(one) in first_names:
            staying.setdefault(name, staying[first_names[id(one)]])
    return staying, positions
