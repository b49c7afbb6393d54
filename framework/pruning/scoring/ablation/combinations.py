"""All sets of a given number of channels of a group."""

import itertools
import math

import torch
from torch import Tensor

from secateur.framework.pruning.channels.groups import Groups
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown


def check_combinations(who: str, size: int, most: int) -> None:
    """Raise UsageError unless both are positive integers."""
    for name, value in (("size", size), ("most", most)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{who}: {name} must be a positive integer, got {value}")


def combinations(groups: Groups, size: int, layer: str | int | None, most: int, who: str) -> dict[str, Tensor]:
    """Return all sets of `size` channels of each group in lexicographic order, `(sets, size)` by group name.

    `layer`, a group's name or 0-based number, restricts the result to that group. A group of fewer channels has
    one set, of all of them. Raises UsageError for an unknown layer and for more than `most` sets.
    """
    if isinstance(layer, int) and not isinstance(layer, bool):
        if not 0 <= layer < len(groups):
            raise UsageError(f"{who}: layer {layer} is outside 0 to {len(groups) - 1}")
        layer = list(groups)[layer]
    if layer is not None and layer not in groups:
        raise UsageError(f"{who}: {unknown('layer', str(layer), list(groups))}")
    chosen = {name: group for name, group in groups.items() if layer in (None, name)}
    sets = sum(math.comb(group.channels, min(size, group.channels)) for group in chosen.values())
    if sets > most:
        raise UsageError(
            f"{who}: {sets} sets of {size} channels are more than most, {most}: choose a layer or a smaller size"
        )
    return {
        name: torch.tensor(list(itertools.combinations(range(group.channels), min(size, group.channels))))
        for name, group in chosen.items()
    }


def least_of_each(values: Tensor, sets: Tensor) -> Tensor:
    """Return the lowest value over all sets that contain each member, `(members,)`."""
    sets = sets.to(values.device)
    lowest = values.new_full((int(sets.max()) + 1,), torch.inf)
    return lowest.scatter_reduce(0, sets.flatten(), values[:, None].expand(sets.shape).flatten(), "amin")
