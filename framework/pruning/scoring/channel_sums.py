"""Sums over the parameters that produce a channel: the rows and biases of all its producers."""

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import output_dim, tensor_name
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups


def producer_parameters(
    model: nn.Module, groups: Mapping[str, ChannelGroup], biases: bool = True
) -> dict[str, nn.Parameter]:
    """Return the weights, and with `biases` the biases, of all producers of the groups' channels, by name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = dict.fromkeys(part.tensor for group in groups.values() for part in group.produced)
    return {name: parameters[name] for name in names if biases or parameters[name].dim() > 1}


def channel_rows(model: nn.Module, groups: Mapping[str, ChannelGroup]) -> dict[str, Tensor]:
    """Return the weights that produce each channel, concatenated over the layers that produce it.

    Args:
        model: The network that `groups` were found in.
        groups: Name -> channel group, as `channel_groups` returns them.

    Returns:
        Group name -> detached tensor of shape `(channels, n)`. n is the number of weights of one channel, over all
        producers of the group; biases and the scales of norms are not among them.

    Example:
        >>> import torch
        >>> from secateur import channel_groups, channel_rows
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> groups = channel_groups(model, torch.zeros(1, 4))
        >>> {name: tuple(rows.shape) for name, rows in channel_rows(model, groups).items()}
        {'0': (3, 4), '2': (2, 3)}
    """
    parameters = {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}
    weights = {name: value for name, value in parameters.items() if value.dim() > 1}
    return {name: torch.cat(_rows(group, weights), dim=1) for name, group in groups.items()}


def rows_of(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the entries of each channel in tensors of the producers' shapes, `(channels, n)`."""
    rows = _rows(group, tensors)
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def _rows(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    rows = []
    for part in group.produced:
        if part.tensor in tensors:
            units = tensors[part.tensor].movedim(part.dim, 0).flatten(1)
            rows.append(of_units(units, part.index).reshape(len(part.index), -1))
    return rows


def of_units(values: Tensor, index: Tensor) -> Tensor:
    """Return the entries of `values` along the first dimension; a view, without a copy, of consecutive ones."""
    units = index.flatten()
    if bool((units.diff() == 1).all()):
        return values.narrow(0, int(units[0]), len(units))
    return values[units.to(values.device)]


def over_channels(groups: Groups, elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum tensors in the shapes of parameters over each channel's rows and biases: `(channels,)` per group.

    With parameter * gradient as elements, this is the gradient of a gate on the producers' output.
    """
    dims = {part.tensor: part.dim for group in groups.values() for part in group.produced}
    units = {
        name: element.movedim(dims[name], 0).flatten(1).sum(1) if element.dim() > 1 else element
        for name, element in elements.items()
        if name in dims
    }
    totals = {}
    for name, group in groups.items():
        parts = [(units[part.tensor], part.index) for part in group.produced if part.tensor in units]
        totals[name] = reduce(torch.add, [values[index.to(values.device)].sum(1) for values, index in parts])
    return totals


def units_per_channel(model: nn.Module, group: ChannelGroup) -> int:
    """Return the number of output units of prunable layers, depthwise ones included, per channel of the group."""
    units = 0
    for name in group.layers:
        weight, dim = tensor_name(name, "weight"), output_dim(model.get_submodule(name))
        units += sum(part.index.shape[1] for part in group.slices if (part.tensor, part.dim) == (weight, dim))
    return units
