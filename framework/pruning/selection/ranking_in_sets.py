"""Channels in the order in which they go, in sets of several of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.selection.budgets import Budget
from secateur.framework.pruning.selection.ranking import Limits, competing, dense_channels
from secateur.framework.pruning.selection.select import Keep


class Chunks:
    """Selections of more and more channels, as `Ranking` has them, whose channels go in sets of `size`.

    A layer's channels are sorted by score, equal ones by position; those that the floor holds back and those with
    a score of +inf are left out, and the rest is taken in consecutive sets of `size`, the last of which may be
    smaller. A set's score is the mean of its members' less the layer's penalty: a mean, so that the smaller set
    compares with the others. Where layers do not compete (`limits.scope`), those go first of which the least share
    would be gone then.
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
        own = {name: groups[name] for name in scores}
        floors = limits.floors(model, own)
        #: per layer, the positions of its channels in the order in which they go
        self._orders = {name: _order(score, floors[name]) for name, score in scores.items()}
        parts = []
        for part in competing(model, own, limits.scope):
            dense = sum(dense_channels(model, own[name]) for name in part)
            gone = dense - sum(own[name].channels for name in part)
            parts.append(self._sorted(part, list(scores), size, penalties or {}, gone, dense))
        joined = [torch.cat(columns) for columns in zip(*parts, strict=True)]
        first = joined[2].sort(stable=True).indices if len(parts) > 1 else torch.arange(len(joined[0]))
        #: per set its layer's number, how many channels it has, and how many have gone with it
        self._layer, self._size = joined[0][first], joined[1][first]
        self._total = self._size.cumsum(0)
        self.steps = len(self._layer)

    def _sorted(
        self, part: list[str], names: list[str], size: int, penalties: Mapping[str, float], gone: int, dense: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sets of layers that compete, lowest score first: layer, size, and the share that is gone with it."""
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
        """What stays when the first `step` sets go, 0 to `steps`."""
        counts = torch.zeros(len(self._scores), dtype=torch.int64)
        counts.scatter_add_(0, self._layer[:step], self._size[:step])
        keep = self.nothing()
        for (name, mask), count in zip(keep.items(), counts.tolist(), strict=True):
            mask[self._orders[name][:count].to(mask.device)] = False
        return keep

    def within(self, channels: int) -> int:
        """The last step with which not more than so many channels go."""
        return int((self._total <= channels).sum())

    def nothing(self) -> Keep:
        """All channels stay."""
        return Keep({name: torch.ones_like(score, dtype=torch.bool) for name, score in self._scores.items()})

    def as_asked(self, share: float, budget: Budget) -> Keep | None:
        """No selection is known without a search."""
        return None

    def refine(self, keep: Keep, distance: Callable[[Keep], float]) -> Keep:
        """Sets go whole and in their order."""
        return keep


def _order(score: Tensor, floor: int) -> Tensor:
    """Positions of the channels that may go, lowest score first."""
    score = score.detach().cpu()
    able = min(len(score) - floor, int((score != torch.inf).sum()))
    return score.sort(stable=True).indices[: max(0, able)]


def _means(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean and length of consecutive parts of `size`, the last of which may be shorter."""
    whole = len(values) // size * size
    means, counts = [values[:whole].view(-1, size).mean(1)], [torch.full((whole // size,), size)]
    if whole < len(values):
        means.append(values[whole:].mean().view(1))
        counts.append(torch.tensor([len(values) - whole]))
    return torch.cat(means), torch.cat(counts)
