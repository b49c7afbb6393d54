"""Which slices of which tensors belong to one channel: traced from a forward pass, never guessed from names.

What a group is, and the one call that finds them; `tracing` has the engine behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import named_modules, prunable_layers
from secateur.framework.network.ordinary_tensors import check_dense
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

MODEL_OUTPUT = "model output"
NOTHING_LEFT = "no channel is left"


class Slice(NamedTuple):
    """What each channel of a group owns along one dimension of one tensor."""

    tensor: str
    dim: int
    #: `(channels, k)` int64: the positions along `dim` that channel c owns
    index: Tensor  # type: ignore[assignment]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one or more layers, and every slice that must go when a channel goes.

    conv "a" of 8 outputs, batch norm "n", linear "b" behind a 2x2 flatten: the group "a" has 8 channels and
    the slices (a.weight, 0, (8, 1)), (a.bias, 0, (8, 1)), (n.weight, 0, (8, 1)), ..., (b.weight, 1, (8, 4)).
    """

    name: str
    channels: int
    slices: tuple[Slice, ...]
    #: `(channels,)`: the channels' indices in the dense network, composed over cuts
    origin: Tensor
    #: layers that mix other channels into these (depthwise convolutions and norms only follow)
    producers: tuple[str, ...]
    #: those of `slices` that are the producers' weights along their outputs, and their biases
    produced: tuple[Slice, ...]
    #: prunable layers whose output units are these channels: producers and depthwise convolutions
    layers: tuple[str, ...]
    #: None when free, else why the group is never cut
    protected: str | None = None
    #: False where a cut is known to differ from a mask, because something reduces over the channels
    exact: bool = True
    #: those of `produced` that are queries, to be scaled by sqrt(channels left / channels): attention divides by
    #: the square root of their number
    queries: tuple[Slice, ...] = ()
    #: whether the output still depends on the input without any of them, as inside a residual branch
    removable: bool = False

    @property
    def rescaled(self) -> tuple[str, ...]:
        """Names of the tensors of which a cut scales the rows of queries that are left."""
        return tuple(part.tensor for part in self.queries)


Groups = Mapping[str, ChannelGroup]
ATTENTION = ("dims", "heads")


class TracedGroups(dict[str, ChannelGroup]):
    """Groups by name, and the one sample they were traced with."""

    def __init__(self, groups: Groups, example: Tensor) -> None:
        super().__init__(groups)
        self.example = example


def example_of(groups: Groups) -> Tensor | None:
    """The sample the groups were traced with, if they remember it."""
    return groups.example if isinstance(groups, TracedGroups) else None


def remap(
    groups: Groups, positions: Mapping[tuple[str, int], Tensor], keep: Mapping[str, Tensor]
) -> dict[str, ChannelGroup]:
    """The groups after a cut: `positions` has, per cut (tensor, dim), the new position of each old one."""
    after: dict[str, ChannelGroup] = {}
    for name, group in groups.items():
        rows = keep[name].cpu().nonzero().flatten() if name in keep else torch.arange(group.channels)

        def moved(parts: tuple[Slice, ...], rows: Tensor = rows) -> tuple[Slice, ...]:
            found = []
            for part in parts:
                index, new = part.index[rows], positions.get((part.tensor, part.dim))
                found.append(part._replace(index=index if new is None else new[index]))
            return tuple(found)

        after[name] = replace(
            group,
            channels=len(rows),
            slices=moved(group.slices),
            produced=moved(group.produced),
            queries=moved(group.queries),
            origin=group.origin[rows],
            protected=group.protected if len(rows) else NOTHING_LEFT,
        )
    return TracedGroups(after, groups.example) if isinstance(groups, TracedGroups) else after


def check_example(example_input: Any) -> None:
    """UsageError unless it is a batch: one dense tensor with values, samples along its first axis."""
    if not isinstance(example_input, Tensor) or not example_input.is_nested and example_input.dim() == 0:
        raise UsageError(f"example_input is a batch, one tensor; got {type(example_input).__name__}")
    check_dense("example_input", example_input)


def _prefixes(model: nn.Module, protect: Sequence[str]) -> Sequence[str]:
    """The prefixes as a sequence, each known to name a module."""
    protect = (protect,) if isinstance(protect, str) else protect
    if not isinstance(protect, Collection) or not all(isinstance(prefix, str) for prefix in protect):
        raise UsageError(f"protect takes names of modules, got {protect!r}")
    names = list(named_modules(model))
    for prefix in protect:
        if not any(name == prefix or name.startswith(prefix + ".") for name in names):
            raise UsageError(unknown("module to protect", prefix, list(prunable_layers(model))))
    return tuple(protect)


def free_groups(groups: Groups) -> dict[str, ChannelGroup]:
    """The groups that may be pruned, in forward order."""
    return {name: group for name, group in groups.items() if group.protected is None}
