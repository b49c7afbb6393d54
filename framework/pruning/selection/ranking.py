"""The ranking of the entries of named tensors, and the selections of any number of its first entries."""

from collections.abc import Mapping, Sequence

import numpy
import torch
from torch import Tensor


class Keep(dict[str, Tensor]):
    """Keep masks by name: bool tensors of the scores' shapes, True = kept, False = pruned.

    Attributes:
        short: Number of entries that were requested but could not be pruned; 0 if the target was met.

    Example:
        >>> import torch
        >>> from secateur import Keep
        >>> Keep({"0": torch.tensor([True, False, True])}).removed
        1
    """

    short: int = 0

    @property
    def removed(self) -> int:
        """Total number of pruned entries."""
        return sum(int((~mask).sum()) for mask in self.values())


class Ranking:
    """The entries of named tensors in the order of pruning: nested selections of `first(count)` entries.

    The lowest score comes first; among equal scores the first entry in mapping order, then in flat order. Entries
    with score +inf and the `floors` highest of each tensor are never pruned. `first` takes time linear in the
    number of entries; after `sort`, which ranks all entries once, each selection takes one comparison per tensor.

    Args:
        scores: Score tensors by name, without NaN.
        floors: Minimum number of entries to keep in each tensor; names may be missing, for 0.
        current: Present masks by name; entries that are 0 or False are pruned in every selection.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        floors: Mapping[str, int] | None = None,
        current: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.scores, self._alive, self._free = scores, {}, {}
        for name, score in scores.items():
            mask = (current or {}).get(name, torch.ones_like(score, dtype=torch.bool))
            self._alive[name] = (mask != 0).flatten().to(score.device)
            self._free[name] = _free(score.flatten(), self._alive[name], (floors or {}).get(name, 0))
        self._sizes = {name: int(free.count_nonzero()) for name, free in self._free.items()}
        #: number of entries that can be pruned, and of those that `current` has already pruned
        self.size = sum(self._sizes.values())
        self.pruned = sum(len(alive) - int(alive.count_nonzero()) for alive in self._alive.values())
        #: counts that a search for a target may choose, ascending from 0
        self.ends: Sequence[int] = range(self.size + 1)
        #: flat rank of each entry: -1 for pruned ones, `size` for those that are never pruned; empty before `sort`
        self._places: dict[str, Tensor] = {}

    def first(self, count: int) -> Keep:
        """Return the selection that prunes the first `count` entries: all if there are fewer, none below 0."""
        count = min(max(0, count), self.size)
        if self._places:
            return self._shaped({name: places >= count for name, places in self._places.items()})
        if count == 0:
            return self._shaped({name: alive.clone() for name, alive in self._alive.items()})
        kept = self._by_name(~lowest(self._candidates(), count))
        return self._shaped(
            {name: alive.masked_scatter(self._free[name], kept[name]) for name, alive in self._alive.items()}
        )

    def up_to(self, count: int) -> Keep:
        """Return the largest selection of at most `count` entries."""
        return self.first(count)

    def above(self, threshold: float) -> Keep:
        """Return the selection that prunes all entries up to a threshold, except those that are never pruned."""
        return self._shaped(
            {
                name: self._alive[name] & ~(free & (self.scores[name].flatten() <= threshold))
                for name, free in self._free.items()
            }
        )

    def sort(self) -> None:
        """Rank all entries, unless this was done before."""
        if not self._places and self.scores:
            values = self._candidates()
            places = torch.empty(len(values), dtype=torch.int32, device=values.device)
            order = values.sort(stable=True).indices
            places[order] = torch.arange(len(values), dtype=torch.int32, device=values.device)
            self._place(places)

    def _place(self, places: Tensor) -> None:
        own = self._by_name(places)
        for name, free in self._free.items():
            ranks = torch.where(self._alive[name], self.size, -1).int()
            self._places[name] = ranks.masked_scatter_(free, own[name])

    def _by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Split one value for each candidate by name."""
        parts = values.split([*self._sizes.values()])
        return {name: part.to(free.device) for (name, free), part in zip(self._free.items(), parts, strict=True)}

    def _shaped(self, masks: Mapping[str, Tensor]) -> Keep:
        return Keep({name: mask.reshape(self.scores[name].shape) for name, mask in masks.items()})

    def _candidates(self) -> Tensor:
        """Return the scores of all prunable entries, in mapping order, on one device."""
        parts = []
        for name, free in self._free.items():
            flat = self.scores[name].flatten()
            parts.append(flat if self._sizes[name] == len(flat) else flat[free])
        return parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts])


def lowest(values: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` lowest entries of a flat tensor; ties are broken by position.

    The entries are partitioned, not sorted: the time is linear in the size.
    """
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if count >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    threshold = _kth(values, count)
    below = values < threshold
    ties = (values == threshold).nonzero().flatten()
    below[ties[: count - int(below.sum())]] = True
    return below


def _kth(values: Tensor, count: int) -> Tensor:
    """Return the `count`-th lowest value; on the CPU numpy's partition takes a quarter of torch's time."""
    if values.is_cpu and values.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(numpy.partition(values.detach().numpy(), count - 1)[count - 1 : count])
    return values.kthvalue(count).values


def _free(score: Tensor, alive: Tensor, floor: int) -> Tensor:
    """Return the mask of prunable entries: alive, below +inf, and not among the `floor` highest."""
    free = alive & (score != torch.inf)
    if floor > 0:
        positions = alive.nonzero().flatten()
        prunable = lowest(score[positions], len(positions) - floor)
        free[positions[~prunable]] = False
    return free
