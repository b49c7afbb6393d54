from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction, Scores, scoring, with_groups
from secateur.criterions.Oracle import Oracle
from secateur.framework.pruning.scoring.ablation.combinations import (
    check_combinations,
    combinations,
    least_of_each,
)
from secateur.framework.pruning.scoring.ablation.loss_change import loss_changes
from secateur.framework.pruning.scoring.gradients import mean_over_batches


class Combinatorial(Oracle):
    """The least squared change of the loss over all sets of `size` channels of a layer that hold the channel.

    So the channels of the set that is missed least come first. `changes` has the squared change of every set, in
    lexicographic order, per group. `layer`: only this group, by name or number, is tried, all others are never
    pruned. More than `most` sets are refused. Exact as Oracle; after training. Method 50 of Molchanov et al.,
    2019, arXiv:1906.10771.
    """

    def __init__(self, *, size: int = 2, layer: str | int | None = None, most: int = 200_000) -> None:
        check_combinations(type(self).__name__, size, most)
        super().__init__()
        self._options = {"size": size, "layer": layer, "most": most}
        self.size, self.layer, self.most = size, layer, most
        self.changes: dict[str, Tensor] = {}

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """The least squared change of every free channel, `(channels,)` per group; +inf in groups not tried."""
        free, batches = with_groups(model, batches, groups)
        sets = combinations(free, self.size, self.layer, self.most, type(self).__name__)
        tried = {name: free[name] for name in sets}
        with scoring(model):
            parts = loss_changes(model, batches, loss, tried, sets)
            squares = ((n, {name: one.square() for name, one in part.items()}) for n, part in parts)
            self.changes = mean_over_batches(squares)
        device = next(model.parameters()).device
        never = {name: torch.full((group.channels,), torch.inf, device=device) for name, group in free.items()}
        return never | {name: least_of_each(one, sets[name]).float() for name, one in self.changes.items()}
