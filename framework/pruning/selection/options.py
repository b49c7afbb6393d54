"""Options of pruning that hold for all steps of a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups
from secateur.framework.pruning.selection.budgets import BUDGETS
from secateur.utils.errors import UsageError
from secateur.utils.limits import check_shares, check_wholes
from secateur.utils.suggest import unknown


@dataclass(frozen=True)
class PruneOptions:
    """What may be pruned, how the units are ranked, and how they are removed.

    Attributes:
        scope: Units that are ranked against each other, one of the `scopes` of the target; None (default) for the
            scope of the criterion.
        min_channels: Minimum number of channels to keep in each group, at least 0.
        round_to: The widths of pruned layers are rounded to multiples of it, at least 1.
        keep_share: Minimum share of each group's channels in the dense network to keep, in [0, 1).
        group_size: Number of channels of a layer, consecutive in the order of their scores, that are pruned
            together.
        protect: Names of layers that are not pruned.
        outer_layers: Whether a weight criterion prunes the first and the last layer.
        rank_inputs: Whether a channel criterion also ranks the network's inputs and masks the pruned ones.
        budget: Budget of the target sparsity, one of `budgets.BUDGETS`; None (default) for "nodes" of channel
            criterions and "weights" of others.
        flops: Value that is subtracted from a channel's score for each multiply-add that its removal saves.
        attention: How attention is cut: "dims" or "heads".
        inexact: Whether channels that a norm or a softmax reduces over are also cut.
        fold: Whether the constant outputs of removed channels are folded into the layers that read them.
    """

    scope: str | None = None
    min_channels: int = 1
    round_to: int = 1
    keep_share: float = 0.0
    group_size: int = 1
    protect: Sequence[str] = ()
    outer_layers: bool = True
    rank_inputs: bool = False
    budget: str | None = None
    flops: float = 0.0
    attention: str = "dims"
    inexact: bool = False
    fold: bool = False

    def __post_init__(self) -> None:
        check_shares(self, "keep_share")
        check_wholes(self, min_channels=0, round_to=1, group_size=1)
        if isinstance(self.protect, str):
            object.__setattr__(self, "protect", (self.protect,))
        if self.budget is not None and self.budget not in BUDGETS:
            raise UsageError(unknown("budget", self.budget, BUDGETS), argument="budget")

    def protects(self, layer: str) -> bool:
        """Whether the layer, or a module that it is part of, is protected."""
        return any(layer == prefix or layer.startswith(prefix + ".") for prefix in self.protect)

    def floors(self, model: nn.Module, groups: Groups) -> dict[str, int]:
        """Return the minimum number of channels to keep in each group."""
        floors = {}
        for name, group in groups.items():
            share = math.ceil(self.keep_share * dense_channels(model, group) - 1e-9)
            floors[name] = min(group.channels, max(self.min_channels, share, int(not group.removable)))
        return floors


def dense_channels(model: nn.Module, group: ChannelGroup) -> int:
    """Return the number of channels of the group before the first cut."""
    kept, dense = lineage_of(model).kept, lineage_of(model).dense
    first = group.produced[0]
    if (first.tensor, first.dim) not in kept:
        return group.channels
    # Groups that share a producer (a split) cannot be distinguished once they are cut: use the present size.
    if first.index.numel() != len(kept[first.tensor, first.dim]):
        return group.channels
    return dense[first.tensor][first.dim] // first.index.shape[1]
