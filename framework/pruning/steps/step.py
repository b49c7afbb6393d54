"""One pruning step: score, select, then mask weights or cut channels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers, prunable_weights, tensor_name
from secateur.framework.network.lineage import Companion, KeptIndices, lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import weight_sparsity
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, free_groups
from secateur.framework.pruning.channels.node_sparsity import node_sparsity
from secateur.framework.pruning.channels.slicing import kept_positions, shrink
from secateur.framework.pruning.channels.verification import not_removable
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores, check_scores
from secateur.framework.pruning.selection.budgets import BUDGETS, LATENCY_TOLERANCE, TOLERANCE, Budget, make_budget
from secateur.framework.pruning.selection.input_features import (
    check_input_scores,
    first_layer,
    gone_scores,
    input_readers,
    keep_inputs,
    living_inputs,
    mask_inputs,
)
from secateur.framework.pruning.selection.joint import keep_both
from secateur.framework.pruning.selection.ranking import CHANNEL_SCOPES, Limits, Ranking
from secateur.framework.pruning.selection.select import SCOPES, Keep
from secateur.framework.pruning.selection.targets import keep_channels, keep_weights, reachable
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.training.events import PruneEvent
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from secateur.utils.suggest import unknown

#: allowed scopes by granularity
SCOPE_OF = {"weight": SCOPES, "channel": CHANNEL_SCOPES, "both": ("global",)}


def nothing_below(criterion: Criterion) -> str:
    """Return the warning for a fixed threshold that has pruned nothing."""
    who, limit = criterion.name, criterion.threshold
    remedy = "longer training, a stronger penalty (such as --hoyer_reg) or a higher --set criterion.threshold"
    return f"{who}: nothing was pruned, no score is below the threshold {limit:g}: try {remedy}"


@dataclass
class PruningStep:
    """Score and prune one network in one or more steps; holds the channel groups between the steps.

    Attributes:
        model: The network.
        criterion: The criterion.
        example_input: One input batch, for tracing and for measured budgets.
        scope: Scope of the ranking; None for that of the criterion.
        protect: Names of layers that are not pruned.
        outer_layers: Whether a weight criterion prunes the first and the last layer.
        rank_inputs: Whether a channel criterion also ranks the first layer's inputs and masks the pruned ones.
        optimizer: Optimizer whose state is cut together with the network.
        companions: Further tensors by parameter name that are cut together with the network.
        budget: Budget of the sparsity of channel criterions, one of `budgets.BUDGETS`.
        min_channels: Minimum number of channels to keep in each group.
        round_to: The widths of pruned layers are rounded to multiples of it.
        keep_share: Minimum share of each group's channels in the dense network to keep.
        attention: How attention is cut: "dims" or "heads".
        inexact: Whether channels that a norm or a softmax reduces over are also cut.
        fold: Whether the constant outputs of removed channels are folded into the layers that read them.
        groups: The present channel groups; set by the constructor.
    """

    model: nn.Module
    criterion: Criterion
    example_input: Tensor
    scope: str | None = None
    protect: Sequence[str] = ()
    outer_layers: bool = True
    rank_inputs: bool = False
    optimizer: Any = None
    companions: Sequence[Companion] = ()
    budget: str = "nodes"
    min_channels: int = 1
    round_to: int = 1
    keep_share: float = 0.0
    attention: str = "dims"
    inexact: bool = False
    fold: bool = False
    groups: dict[str, ChannelGroup] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.protect, str):
            self.protect = (self.protect,)
        granularity = getattr(self.criterion, "granularity", None)
        if granularity not in ("weight", "channel", "both"):
            who = self.criterion.name
            raise UsageError(f"{who}: granularity {granularity!r} cannot be pruned (weight, channel or both)")
        self._check_limits()
        self.criterion.example_input = self.example_input[:1]
        with held_to_contract(self.criterion, "check", self.model):
            self.criterion.check(self.model)
        if self.optimizer is not None:
            unwrapped(self.optimizer)  # raises now instead of after a change of the model
        self.groups = channel_groups(
            self.model, self.example_input, self.protect, inexact=self.inexact, attention=self.attention
        )
        #: layers that read the images and whose inputs are scored; empty without `rank_inputs`
        self.readers = input_readers(self.model, self.example_input, self.groups) if self.rank_inputs else []
        if self.min_channels == 0:
            for name in not_removable(self.model, self.example_input[:1], self.groups):
                self.groups[name] = replace(self.groups[name], removable=False)
        self._dense = copy.deepcopy(self.model) if self.budget == "latency" else None
        if self.criterion.granularity == "channel" and not free_groups(self.groups):
            reasons = sorted({str(group.protected) for group in self.groups.values()})
            raise UsageError(f"{type(self.model).__name__} has no channel to prune: {'; '.join(reasons)}")

    def _check_limits(self) -> None:
        scope, name = self.scope or self.criterion.scope, self.criterion.name
        granularity = self.criterion.granularity
        weightwise = granularity == "weight"
        allowed = SCOPE_OF[granularity]
        if scope not in allowed:
            raise UsageError(f"{name}: {unknown('scope', scope, allowed)}")
        if self.rank_inputs and granularity != "channel":
            raise UsageError(f"{name} prunes {granularity}s: only channel criterions rank the network's inputs")
        if granularity == "both" and (self.budget not in ("nodes", "weights") or self.round_to != 1):
            raise UsageError(
                f"{name} ranks weights and channels together: its budget must be weights, without round_to"
            )
        if self.budget not in BUDGETS:
            raise UsageError(unknown("budget", self.budget, BUDGETS))
        if weightwise and (self.min_channels, self.keep_share, self.round_to, self.fold) != (1, 0, 1, False):
            raise UsageError(
                f"{name} prunes weights: min_channels, keep_share, round_to and fold are for channels"
            )
        if not 0 <= self.keep_share < 1:
            raise UsageError(f"keep_share must be in [0, 1), got {self.keep_share}")
        if self.min_channels < 0 or self.round_to < 1:
            raise UsageError(
                f"min_channels must be at least 0 and round_to at least 1, got {self.min_channels} and "
                f"{self.round_to}"
            )

    def __call__(
        self, target: float, batches: Iterable[Batch], loss: LossFunction, strict: bool = True,
        scores: Scores | None = None,
    ) -> PruneEvent:  # fmt: skip
        """Prune to the share `target` of the dense network, or as near to it as possible.

        With `strict`, raises UsageError without pruning if a budget other than nodes cannot be met. `scores`
        replace those of the criterion.
        """
        granularity = self.criterion.granularity
        batches = list(batches) if self.rank_inputs else batches
        groups = None if granularity == "weight" else free_groups(self.groups)
        if scores is None:
            with held_to_contract(self.criterion, "score", self.model):
                scores = check_scores(
                    self.criterion.score(self.model, batches, loss, groups),
                    self.model,
                    self.groups,
                    self.criterion,
                )
        else:
            scores = check_scores(scores, self.model, self.groups, self.criterion)
        inputs = None
        kept_indices: KeptIndices = {}
        if granularity == "weight":
            keep = self._keep_weights(scores, target, self.scope or self.criterion.scope)
            removed = self._mask(keep)
        elif granularity == "channel":
            keep = self._keep_channels(scores, target, strict)
            inputs = self._inputs_left(scores, keep, target, batches, loss)
            removed = self.remove(keep) + mask_inputs(self.model, self.readers, inputs)
        else:
            keep, removed, kept_indices = self._prune_both(scores, target)
        self.criterion.step += 1
        asked = target if self._threshold(target) is None else None
        return PruneEvent(asked, self.sparsity(), keep, scores, removed, inputs, kept_indices=kept_indices)

    def _threshold(self, target: float) -> float | None:
        """Return the criterion's fixed threshold; None without one, or for a target of 0, which prunes nothing."""
        return self.criterion.threshold if target > 0 else None

    def _mask(self, keep: Keep) -> int:
        """Mask the pruned entries; return the number of newly masked ones."""
        if all(bool(mask.all()) for mask in keep.values()):
            return 0
        masks = Masks(self.model)
        before = {name: masks[name] != 0 for name in keep if name in masks}
        masks.hold(keep)
        return sum(int((~mask & before[name]).sum() if name in before else (~mask).sum())
                   for name, mask in keep.items())  # fmt: skip

    def remove(self, keep: Keep) -> int:
        """Cut the pruned channels; return their number."""
        self.groups = cut(
            self.model, keep, self.groups, self.optimizer, self.companions, self.fold, self.example_input
        )
        return keep.removed

    def _prune_both(self, scores: dict[str, Tensor], target: float) -> tuple[Keep, int, KeptIndices]:
        free = free_groups(self.groups)
        if self._threshold(target) is None:
            floors = self.limits().floors(self.model, free)
            weights, channels = keep_both(self.model, free, scores, target, floors, self.spared())
        else:
            single = {name: score for name, score in scores.items() if name not in free}
            weights = self._keep_weights(single, target, "global")
            channels = self._keep_channels({name: scores[name] for name in free}, target, strict=False)
        kept, _ = kept_positions(self.model, {name: ~mask.cpu() for name, mask in channels.items()}, self.groups)
        removed = self.remove(channels)  # may raise, before anything is masked
        left = Keep({name: shrink(mask, kept.get(name, {})) for name, mask in weights.items()})
        return Keep({**weights, **channels}), removed + self._mask(left), kept

    def _inputs_left(
        self, scores: dict[str, Tensor], keep: Keep, target: float, batches: Iterable[Batch], loss: LossFunction
    ) -> Tensor | None:
        """Return the mask of the network's inputs, None if not ranked; scores of several readers are summed."""
        if not self.rank_inputs or any(map(self._is_protected, self.readers)):
            return None
        alive = living_inputs(self.model, self.readers)
        with held_to_contract(self.criterion, "input_scores", self.model):
            parts = [
                check_input_scores(
                    self.criterion.input_scores(self.model, batches, loss, layer), alive, self.criterion
                )
                for layer in self.readers
            ]
        total = torch.stack(parts).sum(0)
        gone = gone_scores(scores, keep)
        scope, threshold = self.scope or self.criterion.scope, self._threshold(target)
        return keep_inputs(total, alive, gone, scope=scope, target=target, threshold=threshold)

    def check_reachable(self, target: float) -> None:
        """Raise UsageError if the budget cannot be met; called before the first of several steps."""
        if self.criterion.granularity != "channel" or self.criterion.threshold is not None:
            return
        free = free_groups(self.groups)
        reachable(self.model, free, target, self.limits(), self.budget_of(free))

    @property
    def tolerance(self) -> float:
        """Deviation from the target above which a warning is given."""
        return LATENCY_TOLERANCE if self.budget == "latency" else TOLERANCE

    def limits(self) -> Limits:
        """Return the constraints on the selection of channels."""
        return Limits(self.scope or self.criterion.scope, self.min_channels, self.round_to, self.keep_share)

    def budget_of(self, groups: dict[str, ChannelGroup]) -> Budget:
        """Return the budget of the step for the given groups."""
        return make_budget(self.budget, self.model, groups, self.example_input, self._dense)

    def sparsity(self) -> float:
        """Return the sparsity of the weights, or of the budget for a channel criterion."""
        if self.criterion.granularity != "channel":
            return weight_sparsity(self.model)
        if self.budget == "nodes":
            return node_sparsity(self.model, self.example_input)
        return self.budget_of({}).now()

    def spared(self) -> set[str]:
        """Return the weights that are never pruned: protected ones, and the outer layers unless `outer_layers`."""
        spared = {tensor_name(name, "weight") for name in prunable_layers(self.model) if self._is_protected(name)}
        if not self.outer_layers:
            names = list(prunable_weights(self.model))
            spared |= {tensor_name(first_layer(self.groups), "weight")} | {
                tensor_name(layer, "weight") for layer in lineage_of(self.model).output_layers or ()
            }
            spared &= set(names)
        return spared

    def _is_protected(self, layer: str) -> bool:
        return any(layer == prefix or layer.startswith(prefix + ".") for prefix in self.protect)

    def _keep_weights(self, scores: dict[str, Tensor], target: float, scope: str) -> Keep:
        limit, spared = self._threshold(target), self.spared()
        if limit is None:
            return keep_weights(self.model, scores, target, scope, spared)
        return Keep(
            {
                name: score > limit if name not in spared else torch.ones_like(score, dtype=torch.bool)
                for name, score in scores.items()
            }
        )

    def _keep_channels(self, scores: dict[str, Tensor], target: float, strict: bool) -> Keep:
        threshold = self._threshold(target)
        if threshold is not None:
            return Ranking(self.model, self.groups, scores, self.limits()).above(threshold)
        budget = self.budget_of({name: self.groups[name] for name in scores})
        return keep_channels(self.model, self.groups, scores, target, self.limits(), budget, strict)
