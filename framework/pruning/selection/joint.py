"""One ranking over single weights and whole channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import dense_weights
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups
from secateur.framework.pruning.selection.select import Keep, lowest


def keep_both(
    model: nn.Module, groups: Groups, scores: Mapping[str, Tensor], sparsity: float, floors: Mapping[str, int],
    spared: set[str],
) -> tuple[Keep, Keep]:  # fmt: skip
    """Masks of weights and of channels after which `sparsity` of the dense network's prunable weights is gone.

    All living weights and all channels are ranked together by their scores (equal ones: weights first, then in
    mapping order), and the lowest go, as many as bring the share of weights that are masked, or in a channel that
    is cut, nearest to `sparsity`. Masked weights, the weights `spared`, entries with score +inf and the best
    `floors` channels of each group are not in the ranking. If more is gone already, nothing happens.
    """
    pool = _Pool(model, groups, scores, floors, spared)
    low, high = 0, pool.size
    if pool.sparsity(0) >= sparsity or pool.size == 0:
        return pool.keep(0)
    while high - low > 1:  # the least number of entries with which the target is reached
        middle = (low + high) // 2
        low, high = (low, middle) if pool.sparsity(middle) >= sparsity else (middle, high)
    return pool.keep(min((high, low), key=lambda count: abs(pool.sparsity(count) - sparsity)))


class _Pool:
    """Everything that competes, each entry with its place in the ranking."""

    def __init__(
        self, model: nn.Module, groups: Groups, scores: Mapping[str, Tensor], floors: Mapping[str, int],
        spared: set[str],
    ) -> None:  # fmt: skip
        weights, masks = prunable_weights(model), Masks(model)
        self._weights = list(weights)
        self._groups = {name: groups[name] for name in scores if name in groups}
        self._total = sum(dense_weights(model).values())
        dead = {name: masks[name] == 0 for name in weights if name in masks}
        free = {}
        for name in weights:
            may_go = scores[name] != torch.inf
            free[name] = may_go & ~dead[name] if name in dead else may_go
            if name in spared:
                free[name] = torch.zeros_like(may_go)
        for name in self._groups:
            held = len(scores[name]) - floors[name]
            free[name] = lowest(scores[name], held) & (scores[name] != torch.inf)
        self.size = sum(int(mask.sum()) for mask in free.values())
        self._places = self._ranked(scores, free)
        for name, mask in dead.items():
            self._places[name][mask] = -1  # gone before the first

    def _ranked(self, scores: Mapping[str, Tensor], free: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name -> place of each entry, the lowest score first; `size` for what never goes."""
        device = next(iter(scores.values())).device
        values = torch.cat([scores[name][mask].to(device) for name, mask in free.items()])
        place = torch.empty(len(values), dtype=torch.int32, device=device)
        order = values.sort(stable=True).indices
        place[order] = torch.arange(len(values), dtype=torch.int32, device=device)
        found = {}
        parts = place.split([int(mask.sum()) for mask in free.values()])
        for (name, mask), part in zip(free.items(), parts, strict=True):
            places = torch.full(mask.shape, self.size, dtype=torch.int32, device=mask.device)
            found[name] = places.masked_scatter_(mask, part.to(mask.device))
        return found

    def sparsity(self, count: int) -> float:
        """Share of the dense network's weights that is gone once the first `count` entries are."""
        off: dict[tuple[str, int], list[Tensor]] = {}
        for name, group in self._groups.items():
            _note_slices(off, group, (self._places[name] < count).cpu())
        left = 0
        for name in self._weights:
            stays = self._places[name] >= count
            for dim in range(stays.dim()):
                for index in off.get((name, dim), ()):
                    stays.index_fill_(dim, index.to(stays.device), False)
            left += int(stays.sum())
        return 1 - left / max(1, self._total)

    def keep(self, count: int) -> tuple[Keep, Keep]:
        """Weights and channels that stay once the first `count` entries are gone."""
        stays = {name: places >= count for name, places in self._places.items()}
        weights = Keep({name: stays[name] for name in self._weights})
        return weights, Keep({name: stays[name] for name in self._groups})


def _note_slices(off: dict[tuple[str, int], list[Tensor]], group: ChannelGroup, gone: Tensor) -> None:
    if bool(gone.any()):
        for part in group.slices:
            off.setdefault((part.tensor, part.dim), []).append(part.index[gone].flatten())
