"""Default channel groups and an input sample for criterions that are called without them."""

from collections.abc import Iterable

from torch import Tensor, nn

from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, example_of, free_groups
from secateur.framework.pruning.scoring.criterion import Batch, Criterion
from secateur.utils.errors import UsageError


def input_sample(criterion: Criterion, batches: Iterable[Batch], groups: Groups | None = None) -> Tensor:
    """Return one input sample: that of the criterion, of the groups, or of the first batch."""
    sample = criterion.example_input if criterion.example_input is not None else example_of(groups or {})
    if sample is None:
        sample = next((inputs for inputs, _ in list(batches)), None)
    if sample is None:
        raise UsageError(f"{criterion.name} needs an example input or a batch, to run the network once")
    return sample[:1]


def with_groups(
    model: nn.Module, batches: Iterable[Batch], groups: Groups | None
) -> tuple[dict[str, ChannelGroup], Iterable[Batch]]:
    """Return the free channel groups, traced from the first batch if `groups` is None.

    Channel criterions call it first in `score`, so that they work with and without given groups.

    Args:
        model: The network to trace.
        batches: The data, `(inputs, targets)` each.
        groups: The channel groups, or None.

    Returns:
        The free (not protected) groups by name, and an iterable over all batches, including the first one.

    Raises:
        UsageError: If `groups` is None and there is no batch, or if the network cannot be traced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import with_groups
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> groups, batches = with_groups(model, [(torch.zeros(1, 4), torch.tensor([0]))], None)
        >>> {name: group.channels for name, group in groups.items()}
        {'0': 3}
        >>> len(list(batches))
        1
    """
    if groups is not None:
        return free_groups(groups), batches
    from secateur.framework.pruning.channels.discovery import channel_groups

    batches = list(batches)
    if not batches:
        raise UsageError("channel groups can only be traced from a batch: pass groups or batches")
    return free_groups(channel_groups(model, batches[0][0][:1])), batches
