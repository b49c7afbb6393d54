"""All sets of so many channels of a group."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from secateur.framework.pruning.channels.groups import Groups
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown


def check_combinations(who: str, size: int, most: int) -> None:
    """UsageError unless both are whole numbers from 1 on."""
    for name, value in (("size", size), ("most", most)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{who}: {name} must be a whole number from 1 on, got {value}")


def combinations(groups: Groups, size: int, layer: str | int | None, most: int, who: str) -> dict[str, Tensor]:
    """Group -> all sets in lexicographic order, `(sets, size)`; of `layer`, a name or a number from 0, alone
    where one is given.

    A group of fewer channels has one set, of all of them. UsageError for an unknown layer and for too many sets.
    """
    if isinstance(layer, int) and not isinstance(layer, bool):
        if not 0 <= layer < len(groups):
            raise UsageError(f"{who}: layer {layer}: there are {len(groups)}, 0 to {len(groups) - 1}")
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
    """For each member the least value of the sets that hold it, `(members,)`."""
    sets = sets.to(values.device)
    found = values.new_full((int(sets.max()) + 1,), torch.inf)
    each = values[:, None].expand(sets.shape)
    return found.scatter_reduce(0, sets.flatten(), each.flatten(), "amin")
