"""Ranking of channels: the order of pruning within a scope, minimum widths and multiples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups
from secateur.framework.pruning.selection.budgets import Budget, Nodes
from secateur.framework.pruning.selection.select import Keep, lowest, select

#: channels that are ranked against each other: all, those of a group, those of groups of the same structure
CHANNEL_SCOPES = ("global", "layer", "isomorphic")
#: resolution of a share
SHARES = 1 << 20
#: maximum number of groups for which a refinement changes two at once
FEW = 12
#: maximum number of steps of a refinement
REFINEMENTS = 30


@dataclass(frozen=True)
class Limits:
    """Constraints on the selection of channels.

    Attributes:
        scope: One of CHANNEL_SCOPES.
        min_channels: Minimum number of channels to keep in each group.
        round_to: The widths of pruned layers are rounded to multiples of it.
        keep_share: Minimum share of each group's channels in the dense network to keep, in [0, 1).
    """

    scope: str = "global"
    min_channels: int = 1
    round_to: int = 1
    keep_share: float = 0.0

    def floors(self, model: nn.Module, groups: Groups) -> dict[str, int]:
        """Return the minimum number of channels to keep in each group."""
        return {
            name: min(group.channels, max(self.min_channels, int(not group.removable), self._share(model, group)))
            for name, group in groups.items()
        }

    def _share(self, model: nn.Module, group: ChannelGroup) -> int:
        return math.ceil(self.keep_share * dense_channels(model, group) - 1e-9) if self.keep_share else 0


class Ranking:
    """Nested selections of channels, from none pruned to all prunable channels pruned."""

    def __init__(self, model: nn.Module, groups: Groups, scores: Mapping[str, Tensor], limits: Limits) -> None:
        self._scores, self._limits = scores, limits
        self._groups = {name: groups[name] for name in scores}
        self._gone = {name: dense_channels(model, group) - group.channels for name, group in self._groups.items()}
        self._floor = limits.floors(model, self._groups)
        self._parts = competing(model, self._groups, limits.scope)
        self._multiple = {name: _multiple(group, limits.round_to) for name, group in self._groups.items()}
        present = sum(score.numel() for score in scores.values())
        #: index of the last selection
        self.steps = max(1, present) if limits.scope == "global" else SHARES

    def nothing(self) -> Keep:
        """Return the selection that keeps all channels."""
        return Keep({name: torch.ones_like(score, dtype=torch.bool) for name, score in self._scores.items()})

    def keep(self, step: int) -> Keep:
        """Return the selection of an index, 0 to `steps`."""
        if self._limits.scope == "global":
            return self._rounded(select(self._scores, step / self.steps, floor=self._floor))
        return self._shared(step / SHARES)

    def above(self, threshold: float) -> Keep:
        """Keep all channels with a score above the threshold, and at least the minimum number of each group."""
        counts = {name: int((score > threshold).sum()) for name, score in self._scores.items()}
        keep = Keep({name: self._best(name, max(self._floor[name], count)) for name, count in counts.items()})
        return self._rounded(keep)

    def as_asked(self, share: float, budget: Budget) -> Keep | None:
        """Return the same share of each group, for nodes by layer, if it meets the target up to rounding."""
        if self._limits.scope != "layer" or not isinstance(budget, Nodes):
            return None
        keep = self._shared(share)
        # Rounding changes each group by half a step at most; a larger deviation has another cause, such as
        # protection.
        slack = sum(budget.per_channel[name] * self._multiple[name] / 2 for name in keep) / max(1, budget.dense)
        return keep if abs(budget.predicted(keep) - share) <= slack else None

    def refine(self, keep: Keep, distance: Callable[[Keep], float]) -> Keep:
        """Change single groups by one step as long as this reduces the distance."""
        best = distance(keep)
        for _ in range(REFINEMENTS):
            near = list(self._neighbours(keep))
            if len(near) <= 2 * FEW:  # changes of two groups, such as one more and one less
                near += [second for first in near for second in self._neighbours(first)]
            if not near:
                break
            nearest = min(near, key=distance)
            if distance(nearest) >= best:
                break
            keep, best = nearest, distance(nearest)
        return keep

    def _neighbours(self, keep: Keep) -> Iterator[Keep]:
        for name in keep:
            for more in (-1, 1):
                other = self._moved(keep, name, more)
                if other is not None:
                    yield other

    def _moved(self, keep: Keep, name: str, more: int) -> Keep | None:
        count = self._round(name, int(keep[name].sum()) + more * self._multiple[name])
        if count == int(keep[name].sum()) or not self._floor[name] <= count <= len(keep[name]):
            return None
        moved = Keep(keep)
        moved[name] = self._best(name, count)
        return moved

    def _shared(self, share: float) -> Keep:
        """Prune the same share of each set of competing groups."""
        keep = Keep()
        for part in self._parts:
            scores = {name: self._scores[name] for name in part}
            gone = {name: self._gone[name] for name in part}
            masks = select(scores, share, floor={name: self._floor[name] for name in part}, gone=gone)
            keep.update(masks)
            keep.short += masks.short
        return self._rounded(Keep({name: keep[name] for name in self._scores}))

    def _rounded(self, keep: Keep) -> Keep:
        if self._limits.round_to == 1:
            return keep
        rounded = Keep({name: self._best(name, self._round(name, int(mask.sum()))) for name, mask in keep.items()})
        rounded.short = keep.short
        return rounded

    def _round(self, name: str, count: int) -> int:
        """Round to the nearest multiple, at least the minimum width and at most all channels."""
        step, channels = self._multiple[name], self._groups[name].channels
        return min(channels, max(-(-self._floor[name] // step) * step, (count + step // 2) // step * step))

    def _best(self, name: str, count: int) -> Tensor:
        return ~lowest(self._scores[name], len(self._scores[name]) - count)


def competing(model: nn.Module, groups: Mapping[str, ChannelGroup], scope: str) -> list[list[str]]:
    """Return the sets of groups that are ranked together."""
    if scope == "global":
        return [list(groups)]
    parts: dict[Any, list[str]] = {}
    for name, group in groups.items():
        parts.setdefault(name if scope == "layer" else _built(model, group), []).append(name)
    return list(parts.values())


def _multiple(group: ChannelGroup, round_to: int) -> int:
    """Return the number of channels whose multiples give the producer a width that is a multiple of `round_to`.

    A channel may own several outputs of its producer, such as one of each conv group.
    """
    return round_to // math.gcd(round_to, group.produced[0].index.shape[1])


def _built(model: nn.Module, group: ChannelGroup) -> Any:
    """Return the structure of a group: the kinds of layers and norms with its channels, and the dimensions.

    Following isomorphic pruning, arXiv:2407.04616, scores are compared among isomorphic substructures.
    """
    parts = set()
    for part in group.slices:
        owner, _, attribute = part.tensor.rpartition(".")
        module = model.get_submodule(owner)
        kernel = tuple(getattr(module, "kernel_size", ()) or ())
        parts.add((type(module).__name__, kernel, attribute, part.dim))
    return frozenset(parts)


def dense_channels(model: nn.Module, group: ChannelGroup) -> int:
    """Return the number of channels of the group before the first cut."""
    kept, dense = lineage_of(model).kept, lineage_of(model).dense
    first = group.produced[0]
    if (first.tensor, first.dim) not in kept:
        return group.channels
    # Groups that share a producer (a split) cannot be distinguished once they are cut: use the present size.
    if first.index.numel() != len(kept[first.tensor, first.dim]):
        return group.channels
    return dense[first.tensor][first.dim] // first.index.shape[1]
