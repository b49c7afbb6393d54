"""Cost estimates for criterions whose number of passes depends on the network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups


def planned_passes(
    model: nn.Module, example_input: Tensor | None, plan: Callable[..., Any], unknown: float
) -> float:
    """Return `passes` of `plan(model, free groups, sample)`; `unknown` without a sample."""
    if example_input is None:
        return unknown
    groups = free_groups(channel_groups(model, example_input))
    with scoring(model):
        return float(plan(model, groups, example_input[:1]).passes)


def channels_of(model: nn.Module, example_input: Tensor | None, unknown: int) -> int:
    """Return the number of free channels; `unknown` without a sample."""
    if example_input is None:
        return unknown
    return sum(group.channels for group in free_groups(channel_groups(model, example_input)).values())
