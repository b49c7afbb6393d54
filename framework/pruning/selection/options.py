"""Options of pruning that hold for all steps of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.framework.pruning.selection.budgets import BUDGETS
from secateur.framework.pruning.selection.channel_ranking import Limits
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown


@dataclass(frozen=True)
class PruneOptions(Limits):
    """What may be pruned, how the units are ranked, and how they are removed.

    Attributes:
        scope, min_channels, round_to, keep_share, group_size: See `Limits`.
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

    protect: Sequence[str] = ()
    outer_layers: bool = True
    rank_inputs: bool = False
    budget: str | None = None
    flops: float = 0.0
    attention: str = "dims"
    inexact: bool = False
    fold: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.protect, str):
            object.__setattr__(self, "protect", (self.protect,))
        if self.budget is not None and self.budget not in BUDGETS:
            raise UsageError(unknown("budget", self.budget, BUDGETS), argument="budget")

    def protects(self, layer: str) -> bool:
        """Whether the layer, or a module that it is part of, is protected."""
        return any(layer == prefix or layer.startswith(prefix + ".") for prefix in self.protect)
