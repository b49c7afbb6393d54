"""One pruning step: score, select, then mask weights or cut channels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from framework.criterion import Batch, Criterion, LossFunction, check_scores, free_groups
from framework.lineage import lineage_of
from framework.measures import node_sparsity, weight_sparsity
from framework.prunable import prunable_layers, prunable_weights, tensor_name
from framework.pruning.budgets import BUDGETS, LATENCY_TOLERANCE, TOLERANCE, Budget, make_budget
from framework.pruning.channels import ChannelGroup, channel_groups
from framework.pruning.cutting import Companion, cut, unwrapped
from framework.pruning.masks import Masks
from framework.pruning.proof import not_removable
from framework.pruning.ranking import CHANNEL_SCOPES, Limits
from framework.pruning.selection import SCOPES, Keep, lowest
from framework.pruning.targets import keep_channels, keep_weights, reachable
from utils.errors import UsageError
from utils.suggest import unknown


@dataclass
class PruneEvent:
    """What one pruning step did."""

    asked: float
    #: sparsity after the step: of the budget, which is nodes for channels and weights for weights unless told
    reached: float
    keep: Keep
    scores: dict[str, Tensor]


@dataclass
class PruningStep:
    """Scores and prunes one network, as often as asked; it owns the channel groups between the steps."""

    model: nn.Module
    criterion: Criterion
    example_input: Tensor
    scope: str | None = None
    protect: Sequence[str] = ()
    #: prune the first and the last layer too (weight criterions)
    outer_layers: bool = True
    optimizer: Any = None
    companions: Sequence[Companion] = ()
    #: what sparsity is a share of, for channel criterions; see `budgets`
    budget: str = "nodes"
    min_channels: int = 1
    #: channels left are multiples of it
    round_to: int = 1
    #: how attention is cut: "dims" or "heads"
    attention: str = "dims"
    inexact: bool = False
    #: move the constants of removed channels into the layers that read them
    fold: bool = False
    groups: dict[str, ChannelGroup] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.protect, str):
            self.protect = (self.protect,)
        granularity = getattr(self.criterion, "granularity", None)
        if granularity not in ("weight", "channel"):
            who = type(self.criterion).__name__
            raise UsageError(f"{who}: granularity {granularity!r} cannot be pruned (weight or channel)")
        self._check_limits()
        if self.optimizer is not None:
            unwrapped(self.optimizer)  # refused now, and not after the model was changed
        self.groups = channel_groups(
            self.model, self.example_input, self.protect, inexact=self.inexact, attention=self.attention
        )
        if self.min_channels == 0:
            for name in not_removable(self.model, self.example_input[:1], self.groups):
                self.groups[name] = replace(self.groups[name], removable=False)
        self._dense = copy.deepcopy(self.model) if self.budget == "latency" else None
        if self.criterion.granularity == "channel" and not free_groups(self.groups):
            reasons = sorted({str(group.protected) for group in self.groups.values()})
            raise UsageError(f"{type(self.model).__name__} has no channel to prune: {'; '.join(reasons)}")

    def _check_limits(self) -> None:
        scope, name = self.scope or self.criterion.scope, type(self.criterion).__name__
        weightwise = self.criterion.granularity == "weight"
        allowed = SCOPES if weightwise else CHANNEL_SCOPES
        if scope not in allowed:
            raise UsageError(f"{name}: {unknown('scope', scope, allowed)}")
        if self.budget not in BUDGETS:
            raise UsageError(unknown("budget", self.budget, BUDGETS))
        if weightwise and (self.min_channels, self.round_to, self.fold) != (1, 1, False):
            raise UsageError(f"{name} prunes weights: min_channels, round_to and fold are for channels")
        if self.min_channels < 0 or self.round_to < 1:
            raise UsageError(f"min_channels {self.min_channels} and round_to {self.round_to}: at least 0 and 1")

    def __call__(
        self, target: float, batches: Iterable[Batch], loss: LossFunction, strict: bool = True
    ) -> PruneEvent:
        """Prune down to `target` of the dense network, or as far towards it as it goes.

        With `strict` a budget other than nodes that cannot be met is a UsageError, and nothing is pruned.
        """
        weightwise = self.criterion.granularity == "weight"
        groups = None if weightwise else free_groups(self.groups)
        raw = self.criterion.score(self.model, batches, loss, groups)
        scores = check_scores(raw, self.model, self.groups, self.criterion)
        scope = self.scope or self.criterion.scope
        if weightwise:
            keep = self._keep_weights(scores, target, scope)
            Masks(self.model).hold(keep)
        else:
            keep = self._keep_channels(scores, target, strict)
            self.groups = cut(
                self.model, keep, self.groups, self.optimizer, self.companions, self.fold, self.example_input
            )
        self.criterion.step += 1
        return PruneEvent(target, self.sparsity(), keep, scores)

    def check_reachable(self, target: float) -> None:
        """UsageError if the budget cannot be met, before a criterion of several steps has done the first."""
        if self.criterion.granularity != "channel" or self.criterion.threshold is not None:
            return
        free = free_groups(self.groups)
        reachable(self.model, free, target, self._limits(), self._budget(free))

    @property
    def tolerance(self) -> float:
        """How far off a target may lie before it is worth a warning."""
        return LATENCY_TOLERANCE if self.budget == "latency" else TOLERANCE

    def _limits(self) -> Limits:
        return Limits(self.scope or self.criterion.scope, self.min_channels, self.round_to)

    def _budget(self, groups: dict[str, ChannelGroup]) -> Budget:
        return make_budget(self.budget, self.model, groups, self.example_input, self._dense)

    def sparsity(self) -> float:
        """Sparsity of a weight criterion's weights, or of a channel criterion's budget."""
        if self.criterion.granularity == "weight":
            return weight_sparsity(self.model)
        if self.budget == "nodes":
            return node_sparsity(self.model, self.example_input)
        return self._budget({}).now()

    def spared(self) -> set[str]:
        """Weights never pruned: protected by name, and the outer layers unless these are asked for."""
        hit = {
            tensor_name(name, "weight")
            for name in prunable_layers(self.model)
            if any(name == prefix or name.startswith(prefix + ".") for prefix in self.protect)
        }
        if not self.outer_layers:
            names = list(prunable_weights(self.model))
            first = next(iter(self.groups.values())).producers[0]
            hit |= {tensor_name(first, "weight")} | {
                tensor_name(layer, "weight") for layer in lineage_of(self.model).output_layers or ()
            }
            hit &= set(names)
        return hit

    def _keep_weights(self, scores: dict[str, Tensor], target: float, scope: str) -> Keep:
        if self.criterion.threshold is None:
            return keep_weights(self.model, scores, target, scope, self.spared())
        limit, spared = self.criterion.threshold, self.spared()
        return Keep(
            {
                name: score > limit if name not in spared else torch.ones_like(score, dtype=torch.bool)
                for name, score in scores.items()
            }
        )

    def _keep_channels(self, scores: dict[str, Tensor], target: float, strict: bool) -> Keep:
        if self.criterion.threshold is None:
            budget = self._budget({name: self.groups[name] for name in scores})
            return keep_channels(self.model, self.groups, scores, target, self._limits(), budget, strict)
        # At least the best channel of a group stays, or the layer would be gone.
        return Keep(
            {
                name: (score > self.criterion.threshold) | ~lowest(score, len(score) - 1)
                for name, score in scores.items()
            }
        )
