"""The ranking of the entries of named tensors, and selections of its first entries: exact counts, stable ties."""

from collections.abc import Mapping, Sequence

import numpy
import torch
from torch import Tensor

from secateur.utils.errors import UsageError
from secateur.utils.limits import number, whole
from secateur.utils.suggest import unknown

SCOPES = ("global", "layer", "row")


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


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    floor: int | Mapping[str, int] | None = None,
    current: Mapping[str, Tensor] | None = None,
    gone: Mapping[str, int] | None = None,
) -> Keep:
    """Select the entries to keep: prune those with the lowest scores.

    With n = entries present + entries already cut (`gone`), exactly `round(sparsity * n)` entries are pruned
    afterwards, counting those already masked or cut. If more are pruned already, the masks are unchanged. Among
    equal scores the first entry is pruned first, in mapping order and then in flat order. Entries with score +inf
    are never pruned.

    Args:
        scores: Score tensors by name, higher = keep: of any shape for weights, 1-D for channels.
        sparsity: Target share of pruned entries, in [0, 1].
        scope: Which entries are ranked against each other, and to which the sparsity applies: "global" (default;
            all entries), "layer" (those of one tensor) or "row" (those of one index of the first dimension).
        floor: Minimum number of entries to keep in each tensor, or in each row for "row": one number for all, or
            numbers by name. The next-lowest entries are pruned in place of those held by the floor. By default 1
            for 1-D tensors and 0 for others.
        current: Present masks by name, in the shapes of the scores; entries that are 0 or False are already pruned
            and stay so. Names may be missing; None (default) for no masks.
        gone: Number of entries of each tensor that were already cut, by name; not with "row". None (default): 0.

    Returns:
        The keep masks by name, in the shapes of the scores. `short` is the number of entries that could not be
        pruned because of floors and scores of +inf.

    Raises:
        UsageError: If a score is NaN, the sparsity is not a number in [0, 1], the scope is unknown, a mask has
            another shape than its scores, a name has no scores, a count is not an integer of at least 0, or `gone`
            is combined with "row".

    Example:
        >>> import torch
        >>> from secateur import select
        >>> scores = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([0.5, 4.0])}
        >>> select(scores, 0.4)
        {'a': tensor([ True, False,  True]), 'b': tensor([False,  True])}
        >>> select(scores, 0.4, scope="layer").removed
        2
    """
    _check(scores, sparsity, scope, current, gone, floor)
    keep = Keep()
    if scope == "row":
        if any((gone or {}).values()):
            raise UsageError("scope 'row' cannot count entries that were already cut: use 'layer' or 'global'")
        for name, score in scores.items():
            mask, least = (current or {}).get(name), _floor_of(name, score, floor)
            keep[name], short = _select_in_rows(score, sparsity, least, mask)
            keep.short += short
        return keep
    for names in [list(scores)] if scope == "global" else [[name] for name in scores]:
        part = {name: scores[name] for name in names}
        ranking = Ranking(part, {name: _floor_of(name, score, floor) for name, score in part.items()}, current)
        cut = sum((gone or {}).get(name, 0) for name in names)
        size = sum(score.numel() for score in part.values()) + cut
        wanted = round(sparsity * size) - ranking.pruned - cut
        keep.update(ranking.first(wanted))
        keep.short += max(0, wanted - ranking.size)
    return keep


def _floor_of(name: str, score: Tensor, floor: int | Mapping[str, int] | None) -> int:
    default = 1 if score.dim() == 1 else 0
    if floor is None:
        return default
    return floor if isinstance(floor, int) else floor.get(name, default)


def _select_in_rows(score: Tensor, sparsity: float, floor: int, mask: Tensor | None) -> tuple[Tensor, int]:
    """Return the keep mask of a tensor whose rows are pruned alike, and the number of missing entries."""
    rows = score.reshape(len(score), -1) if score.dim() > 1 else score.reshape(1, -1)
    width, alive = rows.shape[1], torch.ones_like(rows, dtype=torch.bool)
    if mask is not None:
        alive = mask.reshape(rows.shape).to(rows.device) != 0
    order = rows.sort(dim=1, stable=True).indices
    order = order.gather(1, alive.gather(1, order).sort(dim=1, stable=True).indices)  # those pruned before first
    places, wanted = order.argsort(dim=1), round(sparsity * width)
    prunable = alive & (rows != torch.inf) & (places < width - floor)
    missing = wanted - (~alive | prunable).sum(dim=1)
    keep = alive & ~(prunable & (places < wanted))
    return keep.reshape(score.shape), int(missing.clamp(min=0).sum())


def _check(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: str,
    current: Mapping[str, Tensor] | None,
    gone: Mapping[str, int] | None,
    floor: int | Mapping[str, int] | None,
) -> None:
    if not isinstance(scores, Mapping) or not all(isinstance(score, Tensor) for score in scores.values()):
        raise UsageError(f"scores must be a mapping from name to tensor, got {type(scores).__name__}")
    number(least=0, most=1)("sparsity", sparsity)
    if scope not in SCOPES:
        raise UsageError(unknown("scope", str(scope), SCOPES))
    for name, score in scores.items():
        if score.isnan().any():
            raise UsageError(f"the scores of '{name}' contain NaN")
    floors = floor if isinstance(floor, Mapping) else None
    if floor is not floors:
        whole(0)("floor", floor)
    for what, given in (("current", current), ("gone", gone), ("floor", floors)):
        if given is not None and not isinstance(given, Mapping):
            raise UsageError(f"{what} must be a mapping by name, got {type(given).__name__}")
        for name, value in (given or {}).items():
            if name not in scores:
                raise UsageError(unknown("name without scores", name, list(scores)))
            if what == "current":
                _check_mask(name, value, scores[name])
            else:
                whole(0)(f"{what} of '{name}'", value)


def _check_mask(name: str, mask: object, score: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise UsageError(f"the mask of '{name}' is {type(mask).__name__}, expected a tensor")
    if mask.shape != score.shape:
        raise UsageError(f"the mask of '{name}' has shape {tuple(mask.shape)}, its scores {tuple(score.shape)}")
