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
from secateur.framework.pruning.scoring.gradients import mean_of


class Combinatorial(Oracle):
    """Lowest squared change of the loss over all sets of `size` channels of a layer that contain the channel.

    The channels of the set with the least change are pruned first. `changes` holds the squared changes of all sets
    in lexicographic order, per group. `layer` restricts the search to one group, by name or number; all others are
    never pruned. More than `most` sets are an error. The changes are exact as in Oracle; after training. Method 50
    of Molchanov et al., 2019, arXiv:1906.10771.
    """

    def __init__(self, *, size: int = 2, layer: str | int | None = None, most: int = 200_000) -> None:
        check_combinations(self.name, size, most)
        super().__init__()
        self.size, self.layer, self.most = size, layer, most
        self.changes: dict[str, Tensor] = {}

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the lowest squared change of every free channel, `(channels,)` per group; else +inf."""
        free, batches = with_groups(model, batches, groups)
        sets = combinations(free, self.size, self.layer, self.most, self.name)
        tried = {name: free[name] for name in sets}
        with scoring(model):
            parts = loss_changes(model, batches, loss, tried, sets)
            squares = ((n, {name: change.square() for name, change in part.items()}) for n, part in parts)
            self.changes = mean_of(squares, equal=True)
        device = next(model.parameters()).device
        never = {name: torch.full((group.channels,), torch.inf, device=device) for name, group in free.items()}
        return never | {name: least_of_each(change, sets[name]).float() for name, change in self.changes.items()}
