"""Which rows of which weights make the queries of attention, so that they can make up for a changed scale.

Attention divides its scores by the square root of a head's size. Where code reads the size off a tensor, fewer
channels change it, and multiplying the queries by sqrt(channels left / channels) restores the scores. Queries may
be a part of a packed projection, so every output of a layer carries the labels of its rows at each of its entries,
as long as operations only move entries about or multiply them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.channels.groups import ChannelGroup, Slice

#: operations after which each entry still is one of those before
MOVES = frozenset(
    ["permute", "transpose", "t", "unsqueeze", "squeeze", "movedim", "expand", "select", "slice", "split",
     "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "chunk"]
)  # fmt: skip
#: the same, where other strides may ask for a copy
VIEWS = frozenset(["view", "_unsafe_view", "reshape", "_reshape_alias"])
#: operations that give a multiple of the first argument for a multiple of it
MULTIPLES = frozenset(
    ["clone", "contiguous", "alias", "detach", "_to_copy", "native_dropout", "neg", "relu", "leaky_relu", "mul",
     "div"]
)  # fmt: skip
UNMATCHED = "the scale of attention depends on it"


class Queries:
    """The rows that each tensor consists of, and those of the queries of every attention that was met."""

    def __init__(self) -> None:
        #: number of a tensor -> the labels of rows at its entries, int64, seldom in memory of its own
        self._rows: dict[int, Tensor] = {}
        #: labels of weights' rows, and of the biases added to them
        self._biases: list[tuple[Tensor, Tensor]] = []
        #: rows of queries whose scale does depend on their size, and of those for which it may
        self.sure: list[Tensor] = []
        self.maybe: list[Tensor] = []

    def begin(self, number: int, shape: Sequence[int], axis: int, labels: Tensor, bias: Tensor | None) -> None:
        """A layer's output, with the labels of the weight (and bias) along one axis of it."""
        if len(labels) == shape[axis]:
            sizes = [len(labels) if one == axis else 1 for one in range(len(shape))]
            self._rows[number] = labels.view(sizes).expand(list(shape))
            if bias is not None:
                self._biases.append((labels, bias))

    def shift(self, number: int, out: int, bias: Tensor) -> None:
        """The labels of a bias that is added to a layer's output by itself, along the last axis."""
        rows = self._rows.get(number)
        if rows is None or rows.shape[-1] != len(bias):
            return
        weight = rows.reshape(-1, len(bias))[0]
        if torch.equal(rows, weight.expand(rows.shape)):
            self._biases.append((weight, bias))
            self._rows[out] = rows

    def follow(self, name: str, func: Any, number: Any, args: Sequence[Any], kwargs: Any, out: Any) -> None:
        """An operation moves rows, or loses them; `number` gives that of a tensor."""
        own = [self._rows.get(number(one)) if isinstance(one, Tensor) else None for one in args[:2]]
        rows = own[0] if own and own[0] is not None else own[1] if name == "mul" and len(own) > 1 else None
        if rows is None:
            return
        both = len(own) > 1 and own[0] is not None and own[1] is not None
        if name in VIEWS:
            self._rows[number(out)] = rows.reshape(out.shape)
        elif name in MOVES:
            moved = func(rows, *args[1:], **kwargs)
            pairs = zip(out, moved, strict=True) if isinstance(out, (list, tuple)) else [(out, moved)]
            self._rows.update((number(one), part) for one, part in pairs)
        elif name.rstrip("_") in MULTIPLES or name in MULTIPLES:
            result = out[0] if isinstance(out, tuple) else out
            if not both and result.shape == rows.shape:
                self._rows[number(result)] = rows
            elif isinstance(args[0], Tensor) and result is args[0]:
                self._rows.pop(number(result), None)
        elif isinstance(out, Tensor) and isinstance(args[0], Tensor) and out is args[0]:
            self._rows.pop(number(out), None)  # changed in place

    def found(self, query: int, key: int, sure: bool) -> bool:
        """Attention of the tensors of these numbers: whether the rows of one of them are known."""
        rows = [self._rows.pop(one, None) for one in (query, key)]
        known = next((one for one in rows if one is not None), None)
        if known is None:
            return False
        seen = torch.zeros(int(known.max()) + 2, dtype=torch.bool)
        seen[known.flatten() + 1] = True  # many times faster than a sort; FIXED comes first
        labels = seen[1:].nonzero().flatten()
        with_biases = [labels, *(bias[torch.isin(weight, labels)] for weight, bias in self._biases)]
        (self.sure if sure else self.maybe).append(torch.cat(with_biases))
        return True


def with_queries(
    groups: Mapping[str, ChannelGroup], starts: Mapping[tuple[str, int], int], count: int, found: Sequence[Tensor]
) -> dict[str, ChannelGroup]:
    """The groups that own some of these rows, with them as their queries; `starts` has the first label along each
    (tensor, dimension), and `count` is the number of labels. A group each of whose channels does not own equally
    many of them is protected."""
    if not found:
        return {}
    wanted = torch.zeros(count, dtype=torch.bool)
    wanted[torch.cat(list(found))] = True
    marked = {}
    for name, group in groups.items():
        parts, even = [], True
        for part in group.produced:
            start = starts.get((part.tensor, part.dim))
            hit = wanted[part.index + start] if start is not None else torch.zeros(1, 1, dtype=torch.bool)
            if bool(hit.any()):
                widths = hit.sum(dim=1)
                even = even and bool((widths == widths[0]).all())
                parts.append((part, hit))
        if parts and not even:
            marked[name] = replace(group, protected=group.protected or UNMATCHED)
        elif parts:
            own = (part._replace(index=part.index[hit].view(group.channels, -1)) for part, hit in parts)
            marked[name] = replace(group, queries=tuple(Slice(*part) for part in own))
    return marked
