"""Scale of attention: the rows of weights that produce queries, which compensate for a changed size of a head.

Attention divides its scores by the square root of a head's size. If the code takes the size from a tensor's
shape, a cut changes it, and multiplying the queries by sqrt(kept channels / channels) restores the scores.
Queries may be a part of a packed projection. Therefore the labels of a layer's rows are propagated for each entry
of its output, as long as operations only move or scale entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.channels.tracing.labels import Labels

#: operations that only move, repeat or select entries
MOVES = frozenset(
    ["permute", "transpose", "t", "unsqueeze", "squeeze", "movedim", "expand", "select", "slice", "split",
     "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "chunk"]
)  # fmt: skip
#: operations that reshape, with a copy if the strides require it
VIEW_OPS = frozenset(["view", "_unsafe_view", "reshape", "_reshape_alias"])
#: operations f of the first argument with f(c x) = c f(x) for c > 0
MULTIPLES = frozenset(
    ["clone", "contiguous", "alias", "detach", "_to_copy", "native_dropout", "neg", "relu", "leaky_relu", "mul",
     "div"]
)  # fmt: skip
UNMATCHED = "the scale of attention depends on it"


class Queries:
    """The rows of weights that each tensor was computed from, and those of the queries of every attention."""

    def __init__(self) -> None:
        #: tensor -> the labels of rows at its entries, int64, usually an expanded view
        self._rows = WeakTensorKeyDictionary()
        #: labels of rows of weights, and of the biases added to their outputs
        self._biases: list[tuple[Tensor, Tensor]] = []
        #: rows of queries whose scale depends on their size, and rows of queries for which it may
        self.sure: list[Tensor] = []
        self.maybe: list[Tensor] = []

    def begin(self, out: Tensor, axis: int, labels: Tensor, bias: Tensor | None) -> None:
        """Record a layer's output, with the labels of its weight (and bias) along one of its axes."""
        if len(labels) == out.shape[axis]:
            self._rows[out] = labels.view(-1, *[1] * (out.dim() - 1 - axis)).expand(out.shape)
            if bias is not None:
                self._biases.append((labels, bias))

    def shift(self, x: Tensor, out: Tensor, bias: Tensor) -> None:
        """Record a bias that a separate operation adds to a layer's output along the last axis."""
        rows = self._rows.get(x)
        if rows is None or rows.shape[-1] != len(bias):
            return
        weight = rows.reshape(-1, len(bias))[0]
        if torch.equal(rows, weight.expand(rows.shape)):
            self._biases.append((weight, bias))
            self._rows[out] = rows

    def follow(self, name: str, func: Any, args: Sequence[Any], kwargs: Any, out: Any) -> None:
        """Propagate rows through an operation, or drop them."""
        pair = [self._rows.get(arg) if isinstance(arg, Tensor) else None for arg in args[:2]]
        known = [rows for rows in pair if rows is not None]
        if not known or pair[0] is None and name != "mul":
            return
        rows = known[0]
        if name in VIEW_OPS:
            self._rows[out] = rows.reshape(out.shape)
        elif name in MOVES:
            moved = func(rows, *args[1:], **kwargs)
            pairs = zip(out, moved, strict=True) if isinstance(out, (list, tuple)) else [(out, moved)]
            for tensor, part in pairs:
                self._rows[tensor] = part
        else:
            result = out[0] if isinstance(out, tuple) else out
            scaled = name.rstrip("_") in MULTIPLES or name in MULTIPLES
            if scaled and len(known) == 1 and result.shape == rows.shape:
                self._rows[result] = rows
            elif isinstance(args[0], Tensor) and result is args[0]:  # changed in place
                self._rows.pop(result, None)

    def found(self, query: Tensor, key: Tensor, sure: bool) -> bool:
        """Record attention between two tensors; return whether rows of one of them were recorded.

        `sure` is whether the scale is known to depend on the size of the queries.
        """
        candidates = [self._rows.pop(tensor, None) for tensor in (query, key)]
        rows = next((labels for labels in candidates if labels is not None), None)
        if rows is None:
            return False
        present = torch.zeros(int(rows.max()) + 2, dtype=torch.bool)
        present[rows.flatten() + 1] = True  # much faster than a sort; index 0 is FIXED
        labels = present[1:].nonzero().flatten()
        with_biases = [labels, *(bias[torch.isin(weight, labels)] for weight, bias in self._biases)]
        (self.sure if sure else self.maybe).append(torch.cat(with_biases))
        return True


def with_queries(
    groups: Mapping[str, ChannelGroup], labels: Labels, found: Sequence[Tensor]
) -> dict[str, ChannelGroup]:
    """Return the groups that own some of the query rows, with these as their `queries`.

    A group whose channels do not all own the same number of rows is protected. `found` are labels of query rows.
    """
    if not found:
        return {}
    starts = labels.starts()
    wanted = torch.zeros(labels.count, dtype=torch.bool)
    wanted[torch.cat(list(found))] = True
    marked = {}
    for name, group in groups.items():
        known = [part for part in group.produced if (part.tensor, part.dim) in starts]
        hits = [(part, wanted[part.index + starts[part.tensor, part.dim]]) for part in known]
        hits = [(part, hit) for part, hit in hits if bool(hit.any())]
        if any(len(hit.sum(dim=1).unique()) > 1 for _, hit in hits):
            marked[name] = replace(group, protected=group.protected or UNMATCHED)
        elif hits:
            queries = (part._replace(index=part.index[hit].view(group.channels, -1)) for part, hit in hits)
            marked[name] = replace(group, queries=tuple(queries))
    return marked
