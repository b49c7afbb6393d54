import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction, Scores, UsageError, scoring, with_groups
from secateur.criterions.Oracle import Oracle
from secateur.framework.pruning.scoring.ablation.loss_change import loss_changes
from secateur.framework.pruning.scoring.gradients import mean_of
from secateur.utils.suggest import unknown


class Combinatorial(Oracle):
    """Lowest squared change of the loss over all sets of `size` channels of a layer that contain the channel.

    The channels of the set with the least change are pruned first. `changes` holds the squared changes of all sets
    in lexicographic order, per group. `layer` restricts the search to one group, by name or number; all others are
    never pruned. More than `most` sets are an error. The changes are exact as in Oracle; after training. Method 50
    of Molchanov et al., 2019, arXiv:1906.10771.
    """

    def __init__(self, *, size: int = 2, layer: str | int | None = None, most: int = 200_000) -> None:
        for name, value in (("size", size), ("most", most)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{self.name}: {name} must be a positive integer, got {value}")
        super().__init__()
        self.size, self.layer, self.most = size, layer, most
        self.changes: dict[str, Tensor] = {}

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the lowest squared change of every free channel, `(channels,)` per group; else +inf."""
        free, batches = with_groups(model, batches, groups)
        sets = self.sets(free)
        with scoring(model):
            parts = loss_changes(model, batches, loss, {name: free[name] for name in sets}, sets)
            squares = ((n, {name: change.square() for name, change in part.items()}) for n, part in parts)
            self.changes = mean_of(squares, equal=True)
        device = next(model.parameters()).device
        scores = {name: torch.full((group.channels,), torch.inf, device=device) for name, group in free.items()}
        for name, change in self.changes.items():
            members = sets[name].to(device)
            changes = change.float()[:, None].expand(members.shape)
            scores[name].scatter_reduce_(0, members.flatten(), changes.flatten(), "amin")
        return scores

    def sets(self, groups: Groups) -> dict[str, Tensor]:
        """Return all sets of `size` channels of each group in lexicographic order, `(sets, size)` by group name.

        A group of fewer channels has one set, of all of them. Raises UsageError for an unknown layer and for more
        than `most` sets.
        """
        layer = self.layer
        if isinstance(layer, int) and not isinstance(layer, bool):
            if not 0 <= layer < len(groups):
                raise UsageError(f"{self.name}: layer {layer} is outside 0 to {len(groups) - 1}")
            layer = list(groups)[layer]
        if layer is not None and layer not in groups:
            raise UsageError(f"{self.name}: {unknown('layer', str(layer), list(groups))}")
        sizes = {
            name: (g.channels, min(self.size, g.channels)) for name, g in groups.items() if layer in (None, name)
        }
        sets = sum(itertools.starmap(math.comb, sizes.values()))
        if sets > self.most:
            raise UsageError(
                f"{self.name}: {sets} sets of {self.size} channels are more than most, {self.most}: "
                "choose a layer or a smaller size"
            )
        return {
            name: torch.tensor(list(itertools.combinations(range(channels), size)))
            for name, (channels, size) in sizes.items()
        }
