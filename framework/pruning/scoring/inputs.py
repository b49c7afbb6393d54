"""One sample of the input, for criterions that run the network only to see what follows what."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, example_of, free_groups
from secateur.framework.pruning.scoring.criterion import Batch, Criterion
from secateur.utils.errors import UsageError


def with_sample(
    criterion: Criterion, model: nn.Module, batches: Iterable[Batch], groups: Groups | None
) -> tuple[dict[str, ChannelGroup], Tensor]:
    """The free groups and one sample: the criterion's own, that of the groups, or the first of the batches."""
    if groups is not None:
        sample = criterion.example_input if criterion.example_input is not None else example_of(groups)
        if sample is not None:
            return free_groups(groups), sample[:1]
    batches = list(batches)
    if not batches:
        raise UsageError(f"{type(criterion).__name__} needs an example input or a batch, to run the network once")
    free, _ = with_groups(model, batches, groups)
    return free, batches[0][0][:1]


def with_groups(
    model: nn.Module, batches: Iterable[Batch], groups: Groups | None
) -> tuple[dict[str, ChannelGroup], Iterable[Batch]]:
    """The free groups, traced from the first inputs where none were given, and all the batches still."""
    if groups is not None:
        return free_groups(groups), batches
    from secateur.framework.pruning.channels.discovery import channel_groups

    batches = list(batches)
    if not batches:
        raise UsageError("channel groups can only be traced from a batch: pass groups or batches")
    return free_groups(channel_groups(model, batches[0][0][:1])), batches
