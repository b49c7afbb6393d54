"""The ranking of channels, with scopes, minimum widths, multiples and sets, and the search for a budget in it.

All candidates of a search are prefixes of one order.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.pruning.channels.groups import ChannelGroup, Groups
from secateur.framework.pruning.selection.budgets import Budget, Nodes
from secateur.framework.pruning.selection.options import PruneOptions, dense_channels
from secateur.framework.pruning.selection.ranking import Keep, Ranking
from secateur.utils.errors import UsageError

#: channels that are ranked against each other: all, those of a group, those of groups of the same structure
CHANNEL_SCOPES = ("global", "layer", "isomorphic")
#: name of the network's inputs in a ranking and in its selections; no module has it
INPUTS = "inputs of the network"
#: maximum number of groups for which a refinement changes two at once
FEW = 12
#: maximum number of steps of a refinement
REFINEMENTS = 30
#: maximum number of corrections of a prediction by the measured share of a cut network
CORRECTIONS = 8


class ChannelRanking(Ranking):
    """The channels of a network in the order of pruning, sorted once; a selection prunes whole sets of channels.

    A layer's prunable channels form consecutive sets of `group_size` in the order of their scores, the last of
    which may be smaller. A set's score is the mean of its channels' scores minus the layer's penalty; the mean
    makes sets of different sizes comparable. Within a scope other than "global" a set's place is the share of the
    competing channels that is pruned with it, so that these shares rise together.

    The inputs of the network may be ranked too. They are no channels: no selection ends with one, so that in the
    global scope those are pruned whose scores are below that of the last channel. The best input is kept.

    Args:
        model: The network.
        groups: Its channel groups.
        scores: One score per channel, `(channels,)`, by group; of the inputs by the name INPUTS, as the last one.
        options: The options; a scope of None is the global one.
        penalties: Values that are subtracted from the scores of a group's channels, by group.
        inputs: Mask of the inputs that are not yet masked, bool `(inputs,)`, if they are ranked.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        scores: Mapping[str, Tensor],
        options: PruneOptions,
        penalties: Mapping[str, float] | None = None,
        inputs: Tensor | None = None,
    ) -> None:
        ranked = {name: groups[name] for name in scores if name != INPUTS}
        current = {} if inputs is None else {INPUTS: inputs}
        super().__init__(scores, options.floors(model, ranked) | {INPUTS: 1}, current)
        self.options, self._global = options, options.scope in (None, "global")
        self._multiples = {name: _multiple(group, options.round_to) for name, group in ranked.items()}
        #: number of units in the dense network, at present, and of those that were pruned before
        self._dense = {name: dense_channels(model, group) for name, group in ranked.items()}
        self._dense |= {name: len(mask) for name, mask in current.items()}
        self._present = {name: int(alive.sum()) for name, alive in self._alive.items()}
        self._gone = {name: dense - self._present[name] for name, dense in self._dense.items()}
        parts = competing(model, ranked, options.scope or "global")
        if inputs is not None:
            parts = [[*parts[0], INPUTS]] if self._global else [*parts, [INPUTS]]
        self._set_ends = [0]
        if scores:
            self._sort_sets(parts, penalties or {})
        #: per name the places of its prunable entries, ascending
        self._own = {name: places[self._free[name]].sort().values for name, places in self._places.items()}

    def _sort_sets(self, parts: list[list[str]], penalties: Mapping[str, float]) -> None:
        """Rank the sets of channels; set `ends` and the places of all channels."""
        names, sizes = list(self.scores), torch.tensor([*self._sizes.values()])
        owner = torch.arange(len(names)).repeat_interleave(sizes)
        scores = self._candidates().detach().cpu().double()
        order = scores.sort(stable=True).indices
        order = order[owner[order].sort(stable=True).indices]  # by layer, and then by score
        #: position of a channel in its set, number of its set
        inner = (torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[owner]) % self.options.group_size
        number = (inner == 0).cumsum(0) - 1
        owner, size = owner[inner == 0], number.bincount()
        value = torch.zeros(len(size), dtype=scores.dtype).index_add(0, number, scores[order]) / size
        value -= torch.tensor([penalties.get(name, 0.0) for name in names], dtype=scores.dtype)[owner]
        if not self._global:
            value = self._shares(parts, value, size, owner)
        ranked = value.sort(stable=True).indices
        ends = size[ranked].cumsum(0)
        starts = torch.empty_like(size)
        starts[ranked] = ends - size[ranked]
        places = torch.empty(len(order), dtype=torch.int32)
        places[order] = (starts[number] + inner).int()
        self._place(places)
        self._set_ends = [0, *ends.tolist()]
        if self._global:
            may_end = owner[ranked] != (names.index(INPUTS) if INPUTS in names else -1)
        else:  # sets of the same share are pruned together
            may_end = torch.cat([value[ranked].diff() > 0, torch.ones(1, dtype=torch.bool)])[: len(ends)]
        self.ends = [0, *ends[may_end].tolist()]

    def _shares(self, parts: list[list[str]], value: Tensor, size: Tensor, owner: Tensor) -> Tensor:
        """Return the share of its competitors from which on a set is pruned: half of its last channel is due."""
        shares, names = torch.empty_like(value), list(self.scores)
        for part in parts:
            sets = torch.isin(owner, torch.tensor([names.index(name) for name in part])).nonzero().flatten()
            order = sets[value[sets].sort(stable=True).indices]
            gone, dense = (sum(of[name] for name in part) for of in (self._gone, self._dense))
            shares[order] = (gone + size[order].cumsum(0) - 0.5).double() / max(1, dense)
        return shares

    def up_to(self, count: int) -> Keep:
        """Return the largest selection of at most `count` entries that splits no set."""
        return self.first(max(end for end in self._set_ends if end <= max(0, count)))

    def _shaped(self, masks: Mapping[str, Tensor]) -> Keep:
        """Return the selection with widths that are rounded to their multiples."""
        keep = super()._shaped(masks)
        if self.options.round_to == 1:
            return keep
        return self._kept({name: self._round(name, int(mask.sum())) for name, mask in keep.items()})

    def at_share(self, share: float, budget: Budget) -> Keep | None:
        """Return the same share of each group, for nodes by layer, if it meets the target up to rounding."""
        if self.options.scope != "layer" or not isinstance(budget, Nodes):
            return None
        kept = {}
        for name, dense in self._dense.items():
            due = min(max(0, round(share * dense) - self._gone[name]), len(self._own[name]))
            kept[name] = self._round(name, self._present[name] - due)
        keep = self._kept(kept)
        # Rounding changes each group by half a step at most; a larger deviation has another cause, such as
        # protection.
        units = sum(budget.per_channel[name] * multiple / 2 for name, multiple in self._multiples.items())
        return keep if abs(budget.predicted(keep) - share) <= units / max(1, budget.dense) else None

    def refine(self, keep: Keep, distance: Callable[[Keep], float]) -> Keep:
        """Change single groups by one step as long as this reduces the distance; sets are never split."""
        best = distance(keep)
        for _ in range(REFINEMENTS if self.options.group_size == 1 else 0):
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
        for name, multiple in self._multiples.items():
            present = int(keep[name].sum())
            for count in (present - multiple, present + multiple):
                count = self._round(name, count)
                if count != present and self._floor(name) <= count <= self._present[name]:
                    yield Keep(keep | self._kept({name: count}))

    def _floor(self, name: str) -> int:
        return self._present[name] - len(self._own[name])

    def _round(self, name: str, count: int) -> int:
        """Round to the nearest multiple, at least the minimum width and at most all channels."""
        step = self._multiples.get(name, 1)
        least = -(-self._floor(name) // step) * step
        return min(self._present[name], max(least, (count + step // 2) // step * step))

    def _kept(self, counts: Mapping[str, int]) -> Keep:
        """Return the selection that keeps these numbers of units, the last ones in the order of their group."""
        keep = Keep()
        for name, count in counts.items():
            own, due = self._own[name], self._present[name] - count
            keep[name] = self._places[name] >= (own[due] if due < len(own) else self.size)
        return keep


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


def nearest(ranking: Ranking, budget: Budget, goal: float) -> Keep:
    """Return the selection of a ranking whose predicted share is nearest to the goal.

    It is found by bisection, since an entry may be any number of nodes or multiply-adds: it prunes the fewest
    entries that reach the goal, or one entry (or set) less.
    """
    ranking.sort()
    ends = ranking.ends
    index = bisect_left(ends, goal, lo=1, key=lambda count: budget.predicted(ranking.first(count)))
    index = min(index, len(ends) - 1)
    candidates = [ranking.first(count) for count in (ends[index], ends[max(0, index - 1)])]
    return min(candidates, key=lambda keep: abs(budget.predicted(keep) - goal))


def to_budget(ranking: ChannelRanking, budget: Budget, sparsity: float, strict: bool = True) -> Keep:
    """Return the selection of channels that brings the pruned share of the budget nearest to `sparsity`.

    If the target is already reached, nothing is pruned. With `strict`, raises UsageError with the reason if a
    budget other than nodes cannot be met within its tolerance.
    """
    now = budget.now()
    if now >= sparsity:
        return ranking.first(0)
    if budget.exact:
        keep = _nearest(ranking, budget, sparsity)
        reached = budget.predicted(keep)
    else:
        keep, reached = _corrected(ranking, budget, sparsity, now)
    if abs(reached - sparsity) > budget.tolerance / 2 or ranking.options.round_to > 1 and budget.exact:
        goal = budget.predicted(keep) + sparsity - reached
        other = ranking.refine(keep, lambda masks: abs(budget.predicted(masks) - goal))
        choices = [(keep, reached), (other, budget.actual(other))]
        keep, reached = min(choices, key=lambda pair: abs(pair[1] - sparsity))
    if strict and abs(reached - sparsity) > budget.tolerance:
        raise UsageError(_why_not(ranking, budget, sparsity, reached))
    return keep


def check_reachable(ranking: ChannelRanking, budget: Budget, sparsity: float) -> None:
    """Raise UsageError if a budget cannot be met even by pruning all prunable channels, whatever the scores."""
    if budget.tolerance < math.inf:
        most = budget.actual(ranking.first(ranking.size))
        if most < sparsity - budget.tolerance:
            raise UsageError(_why_not(ranking, budget, sparsity, most))


def _nearest(ranking: ChannelRanking, budget: Budget, goal: float) -> Keep:
    return ranking.at_share(goal, budget) or nearest(ranking, budget, goal)


def _corrected(ranking: ChannelRanking, budget: Budget, sparsity: float, now: float) -> tuple[Keep, float]:
    """Search for the predicted share whose actual share is the target, by regula falsi."""
    last = ranking.first(ranking.ends[-1])
    low, high = (budget.predicted({}), now), (budget.predicted(last), budget.actual(last))
    best = min([(ranking.first(0), low[1]), (last, high[1])], key=lambda pair: abs(pair[1] - sparsity))
    if high[1] <= sparsity:
        return best
    for turn in range(CORRECTIONS):
        slope = (high[0] - low[0]) / max(1e-9, high[1] - low[1])
        goal = low[0] + slope * (sparsity - low[1]) if turn % 3 < 2 else (low[0] + high[0]) / 2
        keep = _nearest(ranking, budget, goal)
        actual = budget.actual(keep)
        best = min(best, (keep, actual), key=lambda pair: abs(pair[1] - sparsity))
        if abs(actual - sparsity) <= budget.tolerance / 4:
            break
        low, high = ((goal, actual), high) if actual < sparsity else (low, (goal, actual))
    return best


def _why_not(ranking: ChannelRanking, budget: Budget, sparsity: float, reached: float) -> str:
    options, most = ranking.options, budget.actual(ranking.first(ranking.size))
    asked = f"budget {budget.name}: asked for sparsity {sparsity:.4f}"
    if most < sparsity:
        limit = f", min_channels {options.min_channels}" if options.min_channels != 1 else ""
        limit += f", keep_share {options.keep_share:g}" if options.keep_share else ""
        return (
            f"{asked}, at most {most:.4f} can be reached: the remaining channels are protected or the last "
            f"of their group{limit}"
        )
    rounded = f" in steps of {options.round_to}" if options.round_to > 1 else ""
    return (
        f"{asked}, the nearest selection of whole channels{rounded} has {reached:.4f}, more than "
        f"{budget.tolerance} off"
    )
