"""Measures of the L2 norms of groups of weights: of each tensor, or of the channels of the whole network."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import CONVOLUTIONS, TRANSPOSED
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.training.regularisers.measures import Measured, reciprocal, unit
from secateur.utils.tensors import wide

#: form of a structural measure, of the norms of a partition into groups
LASSO, HOYER, HOYER_SQUARE = "lasso", "hoyer", "hoyer_square"


def of_tensors(weights: list[Tensor], form: str, convolution_groups: Sequence[int], fibres: bool) -> Measured:
    """Return a structural measure of each tensor's whole filters and input channels, or of its fibres.

    With the norms of the groups of a tensor divided by its norm |w|, and their sums G_n (filters) and G_c (input
    channels), the measures are |w| (G_n + G_c), G_n + G_c and G_n^2 + G_c^2. An entry u of filter n and channel c
    of w / |w| has the gradients u (1/n + 1/c), [u (1/n + 1/c) - u (G_n + G_c)] / |w| and
    2 [u (G_n/n + G_c/c) - u (G_n^2 + G_c^2)] / |w|, in which 1/0 is 0: a zero group has the subgradient 0.

    Args:
        weights: Tensors of two or more dimensions; filters are the first, input channels the second one.
        form: LASSO, HOYER or HOYER_SQUARE.
        convolution_groups: `groups` of the convolution of each tensor; 1 for any other tensor.
        fibres: Whether to take norms over the filters only and over the input channels only.
    """
    units, norms, inverse = unit(weights)
    values, gradients = [], []
    for u, parts in zip(units, convolution_groups, strict=True):
        cells = u.reshape(parts, u.shape[0] // parts, u.shape[1], -1)
        squares = cells.square()
        filters = squares.sum((2,) if fibres else (2, 3), keepdim=True).sqrt()
        channels = squares.sum((1,) if fibres else (1, 3), keepdim=True).sqrt()
        sums = [filters.sum(), channels.sum()]
        first, second = sums if form == HOYER_SQUARE else (1.0, 1.0)
        factor = first * reciprocal(filters) + second * reciprocal(channels)
        if form == HOYER_SQUARE:
            values.append(sums[0] ** 2 + sums[1] ** 2)
            factor = 2 * factor - 2 * values[-1]
        else:
            values.append(sums[0] + sums[1])
            factor = factor - values[-1] if form == HOYER else factor
        gradients.append((cells * factor).reshape(u.shape))
    sizes = torch.stack(values).to(norms.dtype)
    if form == LASSO:
        return Measured((sizes * norms).sum(), gradients)
    torch._foreach_mul_(gradients, inverse)
    return Measured(sizes.sum(), gradients)


def convolution_groups(model: nn.Module) -> dict[int, int]:
    """Return id of a weight -> `groups` of its convolution, for grouped convolutions."""
    layers = (module for module in model.modules() if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)))
    return {id(layer.weight): layer.groups for layer in layers if layer.groups != 1}


class _Place(NamedTuple):
    """Positions along one dimension of a parameter, and the channels of the network that own them."""

    parameter: int
    dim: int
    positions: Tensor
    channels: Tensor


class Coupled:
    """Structural measures of the channels of a network: all slices of a channel form one norm.

    A channel is small only if everything that a cut removes with it is small: its filters in all layers of its
    group, the columns that read it, biases, scales and shifts. With norms r of the channels of one group and
    Q = sum r^2, the measures of the group are sum r, sum r / sqrt(Q) and (sum r)^2 / Q; groups are added.

    Args:
        model: The network.
        groups: Its channel groups that can be cut, by name.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, ChannelGroup]) -> None:
        by_name = dict(model.named_parameters())  # a tied parameter counts once
        order: dict[int, int] = {}
        self.parameters: list[nn.Parameter] = []
        self._places: list[_Place] = []
        self._group_of: list[int] = []
        for number, group in enumerate(groups.values()):
            start = len(self._group_of)
            self._group_of += [number] * group.channels
            for part in group.slices:
                parameter = by_name.get(part.tensor)
                if parameter is None:  # a buffer, or another name of a parameter
                    continue
                if id(parameter) not in order:
                    order[id(parameter)] = len(self.parameters)
                    self.parameters.append(parameter)
                channels = torch.arange(start, start + group.channels).repeat_interleave(part.index.shape[1])
                place = part.index.flatten().to(parameter.device), channels.to(parameter.device)
                self._places.append(_Place(order[id(parameter)], part.dim, *place))
        self._count = len(groups)

    def measure(self, weights: list[Tensor], form: str) -> Measured:
        """Return the measure of tensors in the order of `parameters`."""
        squares = list(torch._foreach_mul(weights, weights))
        group_of = torch.tensor(self._group_of, device=weights[0].device)
        totals = squares[0].new_zeros(len(group_of))
        for place in self._places:
            square = squares[place.parameter]
            others = [dim for dim in range(square.dim()) if dim != place.dim]
            sums = square.sum(others) if others else square
            totals.index_add_(0, place.channels, sums[place.positions])
        norms = totals.to(wide(totals.device)).sqrt()
        norms = torch.where(reciprocal(norms) > 0, norms, 0.0)
        sums = norms.new_zeros(self._count).index_add_(0, group_of, norms)
        whole = norms.new_zeros(self._count).index_add_(0, group_of, norms.square()).sqrt()
        inverse = reciprocal(whole)
        ratios = sums * inverse
        if form == LASSO:
            value, factor = sums.sum(), reciprocal(norms)
        elif form == HOYER:
            value = ratios.sum()
            factor = (reciprocal(norms) - (ratios * inverse)[group_of]) * inverse[group_of]
        else:
            value = ratios.square().sum()
            factor = 2 * (ratios * inverse)[group_of] * (reciprocal(norms) - (ratios * inverse)[group_of])
        factor = torch.where(norms > 0, factor, 0.0)
        return Measured(value, self._gradients(weights, factor.to(weights[0].dtype)))

    def _gradients(self, weights: list[Tensor], factor: Tensor) -> list[Tensor]:
        """Return weight * sum of the factors of the channels that own it."""
        gradients = [torch.zeros_like(weight) for weight in weights]
        for place in self._places:
            weight = weights[place.parameter]
            along = weight.new_zeros(weight.shape[place.dim]).index_add_(
                0, place.positions, factor[place.channels]
            )
            shape = [-1 if dim == place.dim else 1 for dim in range(weight.dim())]
            gradients[place.parameter].addcmul_(weight, along.reshape(shape))
        return gradients
