"""Ranking of channels in sets of several channels of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.selection.budgets import Budget
from secateur.framework.pruning.selection.ranking import Limits, competing, dense_channels
from secateur.framework.pruning.selection.select import Keep


class Chunks:
    """Nested selections of channels, with the interface of `Ranking`, that prune sets of `size` channels.

    A layer's channels are sorted by score, ties by position; the channels held by the floor and those with a score
    of +inf are excluded, and the others form consecutive sets of `size`, the last of which may be smaller. A set's
    score is the mean of its channels' scores minus the layer's penalty; the mean makes sets of different sizes
    comparable. If layers do not compete (`limits.scope`), the layer with the lowest pruned share is pruned first.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        scores: Mapping[str, Tensor],
        limits: Limits,
        size: int = 1,
        penalties: Mapping[str, float] | None = None,
    ) -> None:
        self._scores = scores
        scored = {name: groups[name] for name in scores}
        floors = limits.floors(model, scored)
        #: per layer, the positions of its channels in pruning order
        self._orders = {name: _order(score, floors[name]) for name, score in scores.items()}
        parts = []
        for part in competing(model, scored, limits.scope):
            dense = sum(dense_channels(model, scored[name]) for name in part)
            gone = dense - sum(scored[name].channels for name in part)
            parts.append(self._sorted(part, list(scores), size, penalties or {}, gone, dense))
        joined = [torch.cat(columns) for columns in zip(*parts, strict=True)]
        first = joined[2].sort(stable=True).indices if len(parts) > 1 else torch.arange(len(joined[0]))
        #: per set the index of its layer, its number of channels, and the cumulative number
        self._layer, self._size = joined[0][first], joined[1][first]
        self._total = self._size.cumsum(0)
        self.steps = len(self._layer)

    def _sorted(
        self, part: list[str], names: list[str], size: int, penalties: Mapping[str, float], gone: int, dense: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sets of competing layers, lowest score first: layer, size and cumulative pruned share."""
        layers, sizes, values = [], [], []
        for name in part:
            mean, count = _means(self._scores[name].detach().cpu().double()[self._orders[name]], size)
            values.append(mean - penalties.get(name, 0.0))
            sizes.append(count)
            layers.append(torch.full_like(count, names.index(name)))
        order = torch.cat(values).sort(stable=True).indices
        size_of = torch.cat(sizes)[order]
        return torch.cat(layers)[order], size_of, (gone + size_of.cumsum(0)).double() / max(1, dense)

    def keep(self, step: int) -> Keep:
        """Return the keep masks after pruning the first `step` sets, 0 to `steps`."""
        counts = torch.zeros(len(self._scores), dtype=torch.int64)
        counts.scatter_add_(0, self._layer[:step], self._size[:step])
        keep = self.nothing()
        for (name, mask), count in zip(keep.items(), counts.tolist(), strict=True):
            mask[self._orders[name][:count].to(mask.device)] = False
        return keep

    def within(self, channels: int) -> int:
        """Return the last step that prunes at most `channels` channels."""
        return int((self._total <= channels).sum())

    def nothing(self) -> Keep:
        """Return the selection that keeps all channels."""
        return Keep({name: torch.ones_like(score, dtype=torch.bool) for name, score in self._scores.items()})

    def as_asked(self, share: float, budget: Budget) -> Keep | None:
        """Return None: a selection is always searched for."""
        return None

    def refine(self, keep: Keep, distance: Callable[[Keep], float]) -> Keep:
        """Return the selection unchanged: sets are pruned as a whole and in order."""
        return keep


def _order(score: Tensor, floor: int) -> Tensor:
    """Return the positions of the prunable channels, lowest score first."""
    score = score.detach().cpu()
    able = min(len(score) - floor, int((score != torch.inf).sum()))
    return score.sort(stable=True).indices[: max(0, able)]


def _means(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return mean and length of consecutive parts of `size` values, the last of which may be shorter."""
    whole = len(values) // size * size
    means, counts = [values[:whole].view(-1, size).mean(1)], [torch.full((whole // size,), size)]
    if whole < len(values):
        means.append(values[whole:].mean().view(1))
        counts.append(torch.tensor([len(values) - whole]))
    return torch.cat(means), torch.cat(counts)
