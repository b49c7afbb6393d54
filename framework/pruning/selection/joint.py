"""Joint ranking of single weights and whole channels."""

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
    """Return keep masks of weights and of channels that bring the network nearest to a sparsity.

    Sparsity is the share of the dense network's prunable weights that are masked or in a channel that is cut. All
    unmasked weights and all channels are ranked together by their scores (ties: weights first, then in mapping
    order), and the lowest are pruned. Masked weights, the weights `spared`, entries with score +inf and the best
    `floors` channels of each group are excluded from the ranking. If the sparsity is already reached, nothing is
    pruned.
    """
    pool = _Pool(model, groups, scores, floors, spared)
    low, high = 0, pool.size
    if pool.sparsity(0) >= sparsity or pool.size == 0:
        return pool.keep(0)
    while high - low > 1:  # the least number of entries that reaches the target
        middle = (low + high) // 2
        low, high = (low, middle) if pool.sparsity(middle) >= sparsity else (middle, high)
    return pool.keep(min((high, low), key=lambda count: abs(pool.sparsity(count) - sparsity)))


class _Pool:
    """All ranked entries, each with its rank."""

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
            prunable = scores[name] != torch.inf
            free[name] = prunable & ~dead[name] if name in dead else prunable
            if name in spared:
                free[name] = torch.zeros_like(prunable)
        for name in self._groups:
            held = len(scores[name]) - floors[name]
            free[name] = lowest(scores[name], held) & (scores[name] != torch.inf)
        self.size = sum(int(mask.sum()) for mask in free.values())
        self._places = self._ranked(scores, free)
        for name, mask in dead.items():
            self._places[name][mask] = -1  # pruned before the first rank

    def _ranked(self, scores: Mapping[str, Tensor], free: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return name -> rank of each entry, the lowest score first; `size` for entries that are never pruned."""
        device = next(iter(scores.values())).device
        values = torch.cat([scores[name][mask].to(device) for name, mask in free.items()])
        place = torch.empty(len(values), dtype=torch.int32, device=device)
        order = values.sort(stable=True).indices
        place[order] = torch.arange(len(values), dtype=torch.int32, device=device)
        ranks = {}
        parts = place.split([int(mask.sum()) for mask in free.values()])
        for (name, mask), part in zip(free.items(), parts, strict=True):
            places = torch.full(mask.shape, self.size, dtype=torch.int32, device=mask.device)
            ranks[name] = places.masked_scatter_(mask, part.to(mask.device))
        return ranks

    def sparsity(self, count: int) -> float:
        """Return the share of the dense network's weights that is removed with the first `count` entries."""
        off: dict[tuple[str, int], list[Tensor]] = {}
        for name, group in self._groups.items():
            _note_slices(off, group, (self._places[name] < count).cpu())
        left = 0
        for name in self._weights:
            kept = self._places[name] >= count
            for dim in range(kept.dim()):
                for index in off.get((name, dim), ()):
                    kept.index_fill_(dim, index.to(kept.device), False)
            left += int(kept.sum())
        return 1 - left / max(1, self._total)

    def keep(self, count: int) -> tuple[Keep, Keep]:
        """Return the keep masks of weights and channels after pruning the first `count` entries."""
        kept = {name: places >= count for name, places in self._places.items()}
        weights = Keep({name: kept[name] for name in self._weights})
        return weights, Keep({name: kept[name] for name in self._groups})


def _note_slices(off: dict[tuple[str, int], list[Tensor]], group: ChannelGroup, gone: Tensor) -> None:
    if bool(gone.any()):
        for part in group.slices:
            off.setdefault((part.tensor, part.dim), []).append(part.index[gone].flatten())
