"""Channel groups: the slices of tensors that belong to one channel, traced from a forward pass, not from names.

`discovery.channel_groups` finds them; `tracing` has the tracer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.framework.network.ordinary_tensors import check_dense
from secateur.utils.errors import UsageError

MODEL_OUTPUT = "model output"
NOTHING_LEFT = "no channel is left"


class Slice(NamedTuple):
    """The positions that each channel of a group owns along one dimension of one tensor."""

    tensor: str
    dim: int
    #: `(channels, k)` int64: the positions along `dim` that channel c owns
    index: Tensor  # type: ignore[assignment]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one or more layers, and every slice that must be removed together with a channel.

    Instances are made by `channel_groups` and are immutable.

    Attributes:
        name: The first producer in forward order, followed by "#1", "#2", ... if it produces several groups.
        channels: The number of channels.
        slices: Every `Slice(tensor, dim, index)` that the channels own, `index` int64 `(channels, k)`.
        origin: int64 `(channels,)`: the channels' indices in the dense network, composed over cuts.
        producers: Names of the layers that compute these channels from others. Depthwise convolutions and norms
            are not among them, since their channels follow those of their input.
        produced: The entries of `slices` that are the producers' weights along their outputs, and their biases.
        layers: Names of the prunable layers whose output units are these channels: producers and depthwise
            convolutions.
        protected: None if the group can be pruned, else the reason why it is never cut.
        exact: False if a cut is known to differ from a mask, because an operation reduces over the channels.
        queries: The entries of `produced` that are rows of attention queries. A cut multiplies the kept rows by
            sqrt(kept channels / channels), since attention divides by the square root of their number.
        removable: Whether all channels may be removed: the output depends on the input without them, too, as
            inside a residual branch.

    Example:
        A convolution with 8 outputs and a linear layer that reads them after a flatten to 4 columns each:

        >>> import torch
        >>> from torch import nn
        >>> from secateur import channel_groups
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 2))
        >>> group = channel_groups(model, torch.randn(1, 1, 4, 4))["0"]
        >>> for part in group.slices:
        ...     print(part.tensor, part.dim, tuple(part.index.shape))
        0.weight 0 (8, 1)
        0.bias 0 (8, 1)
        1.weight 0 (8, 1)
        1.bias 0 (8, 1)
        3.weight 1 (8, 4)
        1.running_mean 0 (8, 1)
        1.running_var 0 (8, 1)
    """

    name: str
    channels: int
    slices: tuple[Slice, ...]
    origin: Tensor
    producers: tuple[str, ...]
    produced: tuple[Slice, ...]
    layers: tuple[str, ...]
    protected: str | None = None
    exact: bool = True
    queries: tuple[Slice, ...] = ()
    removable: bool = False


#: group name -> `ChannelGroup`, in forward order: the result of `channel_groups` and of `cut`
Groups = Mapping[str, ChannelGroup]


class TracedGroups(dict[str, ChannelGroup]):
    """Groups by name, and the sample that they were traced with."""

    def __init__(self, groups: Groups, example: Tensor) -> None:
        super().__init__(groups)
        self.example = example


def example_of(groups: Groups) -> Tensor | None:
    """Return the sample that the groups were traced with; None for a plain mapping."""
    return groups.example if isinstance(groups, TracedGroups) else None


def like(groups: Groups, after: Groups) -> dict[str, ChannelGroup]:
    """Return the groups `after` a cut, with the sample that those before it were traced with."""
    return TracedGroups(after, groups.example) if isinstance(groups, TracedGroups) else dict(after)


def remap(
    groups: Groups, positions: Mapping[tuple[str, int], Tensor], keep: Mapping[str, Tensor]
) -> dict[str, ChannelGroup]:
    """Return the groups after a cut.

    Args:
        groups: The groups before the cut.
        positions: For each cut (tensor, dim), the new position of each old one.
        keep: Group name -> bool `(channels,)`, False for a removed channel.
    """
    after: dict[str, ChannelGroup] = {}
    for name, group in groups.items():
        rows = keep[name].cpu().nonzero().flatten() if name in keep else torch.arange(group.channels)

        def moved(parts: tuple[Slice, ...], rows: Tensor = rows) -> tuple[Slice, ...]:
            slices = []
            for part in parts:
                index, new = part.index[rows], positions.get((part.tensor, part.dim))
                slices.append(part._replace(index=index if new is None else new[index]))
            return tuple(slices)

        after[name] = replace(
            group,
            channels=len(rows),
            slices=moved(group.slices),
            produced=moved(group.produced),
            queries=moved(group.queries),
            origin=group.origin[rows],
            protected=group.protected if len(rows) else NOTHING_LEFT,
        )
    return like(groups, after)


def check_example(example_input: Any) -> None:
    """Raise UsageError unless it is a batch: one dense tensor with values, samples along its first axis."""
    given = type(example_input).__name__
    if isinstance(example_input, Tensor):
        check_dense("example_input", example_input)
        given += f" {tuple(example_input.shape)}"
    if not isinstance(example_input, Tensor) or example_input.dim() == 0 or len(example_input) == 0:
        raise UsageError(f"example_input is a batch, one tensor with at least one sample; got {given}")


def free_groups(groups: Groups) -> dict[str, ChannelGroup]:
    """Return the groups that are not protected, in forward order."""
    return {name: group for name, group in groups.items() if group.protected is None}
