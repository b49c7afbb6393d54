"""What a criterion prunes, single weights, channels or both, and how much of it a step is asked to prune."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers, prunable_weights, tensor_name
from secateur.framework.network.lineage import Companion, KeptIndices, lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import dense_weights, weight_sparsity
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, free_groups
from secateur.framework.pruning.channels.node_sparsity import node_sparsity
from secateur.framework.pruning.channels.slicing import kept_positions, shrink
from secateur.framework.pruning.channels.verification import not_removable
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction
from secateur.framework.pruning.selection.budgets import (
    BUDGETS,
    LATENCY_TOLERANCE,
    TOLERANCE,
    Budget,
    Macs,
    Nodes,
    make_budget,
)
from secateur.framework.pruning.selection.channel_ranking import CHANNEL_SCOPES, INPUTS, ChannelRanking
from secateur.framework.pruning.selection.input_features import NetworkInputs, first_layer, input_readers
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Keep, Ranking
from secateur.framework.pruning.selection.search import check_reachable, nearest, to_budget
from secateur.framework.pruning.selection.select import SCOPES, select
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown


class Choice(NamedTuple):
    """The selection of a step, and the share or the number that determined it; neither for a fixed threshold."""

    keep: Keep
    asked: float | None = None
    number: int | None = None


@dataclass(frozen=True)
class Request:
    """How much to prune: up to a share of the dense network, a number of units, or the less of the two.

    Attributes:
        share: Target sparsity after the step, or None.
        units: Number of weights or channels that the step prunes, or None.
    """

    share: float | None = None
    units: int | None = None

    def resolve(self, to_share: Callable[[float], Keep], first: Callable[[int], Keep]) -> Choice:
        """Return the selection; `to_share` gives that of a share, `first` that of a number of units."""
        by_number = None if self.units is None else Choice(first(self.units), number=self.units)
        if self.share is None:
            assert by_number is not None
            return by_number
        by_share = Choice(to_share(self.share), asked=self.share)
        return by_share if by_number is None or by_share.keep.removed <= by_number.keep.removed else by_number


class Removal(NamedTuple):
    """Number of units that were pruned, and the kept positions where weights and channels are ranked together."""

    units: int
    kept_indices: KeptIndices


class Target(ABC):
    """Base class of what is pruned: it selects units by their scores, and removes them from the network.

    Args:
        model: The network.
        criterion: The criterion whose scores are ranked.
        example_input: One input batch, for tracing and for measured budgets.
        options: The options.

    Attributes:
        groups: The present channel groups.
        optimizer: Optimizer whose state is cut together with the network, or None.
        companions: Further tensors by parameter name that are cut together with the network.
    """

    #: allowed scopes and budgets, the first of which is the default
    scopes: ClassVar[tuple[str, ...]]
    budgets: ClassVar[tuple[str, ...]]
    #: options that have no meaning for the target, and what it does, in messages
    unused: ClassVar[tuple[str, ...]] = ()
    does = "prunes weights"
    #: name of the units in messages, and the reason for pruning fewer than requested
    units = "weights"
    why_short = "the remaining weights are protected"

    def __init__(
        self, model: nn.Module, criterion: Criterion, example_input: Tensor, options: PruneOptions
    ) -> None:
        self.model, self.criterion, self.example_input = model, criterion, example_input
        self.scope, self.budget = options.scope or criterion.scope, options.budget or self.budgets[0]
        self.options = replace(options, scope=self.scope, budget=self.budget)
        self.optimizer: Any = None
        self.companions: Sequence[Companion] = ()
        self.groups: dict[str, ChannelGroup] = channel_groups(
            model, example_input, options.protect, inexact=options.inexact, attention=options.attention
        )
        if options.min_channels == 0:
            for name in not_removable(model, example_input[:1], self.groups):
                self.groups[name] = replace(self.groups[name], removable=False)

    @classmethod
    def check(cls, criterion: Criterion, options: PruneOptions) -> None:
        """Raise UsageError for options that have no meaning for this target."""
        scope, name = options.scope or criterion.scope, criterion.name
        if scope not in cls.scopes:
            raise UsageError(f"{name}: {unknown('scope', scope, cls.scopes)}", argument="scope")
        if cls.budgets == ("weights",) and options.budget not in (None, "weights"):
            raise UsageError(f"{name} prunes {criterion.granularity}s: its budget is 'weights'", argument="budget")
        for option in cls.unused:
            if getattr(options, option) != getattr(PruneOptions, option):
                raise UsageError(f"{option} cannot be combined with {name}, which {cls.does}", argument=option)

    @classmethod
    def scored(cls, groups: Groups) -> Groups | None:
        """Return the groups that the criterion scores: the free ones, None if it scores weights alone."""
        return free_groups(groups)

    def input_scores(self, batches: Iterable[Batch], loss: LossFunction) -> dict[str, Tensor]:
        """Return the scores of the network's inputs by the name INPUTS, if they are ranked."""
        return {}

    @property
    def scorings(self) -> int:
        """Number of scorings of a step: one, and one for each layer whose inputs are ranked."""
        return 1

    @abstractmethod
    def choose(self, scores: dict[str, Tensor], request: Request, strict: bool = True) -> Choice:
        """Return the selection that a request gives with these scores.

        With `strict`, raises UsageError if a budget other than nodes cannot be met.
        """

    @abstractmethod
    def remove(self, keep: Keep) -> Removal:
        """Mask or cut what is not kept."""

    def sparsity(self) -> float:
        """Return the present sparsity, in the budget of the target."""
        return weight_sparsity(self.model)

    def check_reachable(self, sparsity: float) -> None:  # noqa: B027
        """Raise UsageError if the budget cannot be met, whatever the scores."""

    @property
    def tolerance(self) -> float:
        """Deviation from the target above which a warning is given."""
        return LATENCY_TOLERANCE if self.budget == "latency" else TOLERANCE

    def spared(self) -> set[str]:
        """Return the weights that are never pruned: protected ones, and the outer layers unless `outer_layers`."""
        layers = {name for name in prunable_layers(self.model) if self.options.protects(name)}
        if not self.options.outer_layers:
            layers |= {first_layer(self.groups), *(lineage_of(self.model).output_layers or ())}
        return {tensor_name(layer, "weight") for layer in layers} & prunable_weights(self.model).keys()

    def _threshold(self, request: Request) -> float | None:
        """Return the criterion's fixed threshold; None without one, or for a share of 0, which prunes nothing."""
        return None if request.share == 0 else self.criterion.threshold

    def _unspared(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scores with +inf, which is never pruned, for the spared weights."""
        spared = self.spared()
        return {
            name: torch.full_like(score, torch.inf) if name in spared else score for name, score in scores.items()
        }

    def _masked(self) -> dict[str, Tensor]:
        """Return the masks of the prunable weights."""
        masks = Masks(self.model)
        return {name: masks[name] for name in prunable_weights(self.model) if name in masks}

    def _mask(self, keep: Mapping[str, Tensor]) -> int:
        """Mask the pruned weights; return the number of newly masked ones."""
        if all(bool(mask.all()) for mask in keep.values()):
            return 0
        before = {name: mask != 0 for name, mask in self._masked().items()}
        Masks(self.model).hold(keep)
        return sum(
            int((~mask & before[name]).sum() if name in before else (~mask).sum()) for name, mask in keep.items()
        )

    def _cut(self, keep: Keep) -> int:
        """Cut the pruned channels; return their number."""
        self.groups = cut(
            self.model, keep, self.groups, self.optimizer, self.companions, self.options.fold, self.example_input
        )
        return keep.removed


class WeightTarget(Target):
    """Single weights, which are masked. Sparsity is the share of the dense network's prunable weights."""

    scopes, budgets = SCOPES, ("weights",)
    unused = ("min_channels", "keep_share", "round_to", "group_size", "flops", "fold", "rank_inputs")

    @classmethod
    def scored(cls, groups: Groups) -> Groups | None:
        return None

    def choose(self, scores: dict[str, Tensor], request: Request, strict: bool = True) -> Choice:
        scores, threshold = self._unspared(scores), self._threshold(request)
        if threshold is not None:
            return Choice(Keep({name: score > threshold for name, score in scores.items()}))
        masked, gone = self._masked(), {name: count for name, count in cut_weights(self.model).items() if count}
        return request.resolve(
            lambda share: select(scores, share, scope=self.scope, current=masked, gone=gone),
            lambda units: Ranking(scores, current=masked).first(units),
        )

    def remove(self, keep: Keep) -> Removal:
        return Removal(self._mask(keep), {})


class ChannelTarget(Target):
    """Channels, which are cut, and with `rank_inputs` the network's inputs, which are masked.

    Sparsity is a share of the budget, by default the dense network's nodes.
    """

    scopes, budgets = CHANNEL_SCOPES, BUDGETS
    does, units = "prunes channels", "channels"
    why_short = "the remaining channels are protected or the last of their layer"

    def __init__(
        self, model: nn.Module, criterion: Criterion, example_input: Tensor, options: PruneOptions
    ) -> None:
        super().__init__(model, criterion, example_input, options)
        readers = input_readers(model, example_input, self.groups) if options.rank_inputs else []
        ranked = readers and not any(map(options.protects, readers))
        #: the network's inputs, if they are ranked
        self.inputs = NetworkInputs(model, readers) if ranked else None
        self._dense = copy.deepcopy(model) if self.budget == "latency" else None
        if not free_groups(self.groups):
            reasons = sorted({str(group.protected) for group in self.groups.values()})
            raise UsageError(f"{type(model).__name__} has no channel to prune: {'; '.join(reasons)}")

    def input_scores(self, batches: Iterable[Batch], loss: LossFunction) -> dict[str, Tensor]:
        return {} if self.inputs is None else {INPUTS: self.inputs.scores(self.criterion, batches, loss)}

    @property
    def scorings(self) -> int:
        return 1 if self.inputs is None else 1 + len(self.inputs.readers)

    def choose(self, scores: dict[str, Tensor], request: Request, strict: bool = True) -> Choice:
        inputs = None if self.inputs is None else self.inputs.alive()
        penalties = {}
        if self.options.flops > 0:
            macs = Macs(self.model, free_groups(self.groups), self.example_input)
            penalties = {name: self.options.flops * macs.freed(name) for name in scores}
        ranking = ChannelRanking(self.model, self.groups, scores, self.options, penalties, inputs)
        threshold = self._threshold(request)
        if threshold is not None:
            return Choice(ranking.above(threshold))
        return request.resolve(
            lambda share: to_budget(ranking, self.budget_now(), share, strict),
            lambda units: ranking.first(ranking.within(units)),
        )

    def remove(self, keep: Keep) -> Removal:
        count = self._cut(Keep({name: mask for name, mask in keep.items() if name != INPUTS}))
        if self.inputs is not None:
            count += self.inputs.mask(keep[INPUTS])
        return Removal(count, {})

    def budget_now(self) -> Budget:
        """Return the budget of the present network; raise UsageError if no prunable channel has a share of it."""
        groups = free_groups(self.groups)
        budget = make_budget(self.budget, self.model, groups, self.example_input, self._dense)
        if isinstance(budget, Nodes) and groups and not any(budget.per_channel.values()):
            raise UsageError(
                "no prunable channel is a node, an output of a convolution or linear layer: use budget macs",
                argument="budget",
            )
        return budget

    def sparsity(self) -> float:
        if self.budget == "nodes":
            return node_sparsity(self.model, self.example_input)
        return self.budget_now().now()

    def check_reachable(self, sparsity: float) -> None:
        if self.criterion.threshold is None:
            free = free_groups(self.groups)
            budget = make_budget(self.budget, self.model, free, self.example_input, self._dense)
            check_reachable(self.model, free, sparsity, self.options, budget)


class JointTarget(Target):
    """Weights and channels in one ranking: channels are cut, and then the other pruned weights are masked.

    Sparsity is the share of the dense network's prunable weights that are masked or in a channel that is cut.
    """

    scopes, budgets = ("global",), ("weights",)
    unused = ("round_to", "group_size", "flops", "rank_inputs")
    does = "ranks weights and channels together"

    def choose(self, scores: dict[str, Tensor], request: Request, strict: bool = True) -> Choice:
        free, scores = free_groups(self.groups), self._unspared(scores)
        threshold = self._threshold(request)
        if threshold is not None:
            channels = ChannelRanking(self.model, free, {name: scores[name] for name in free}, self.options)
            above = {name: score > threshold for name, score in scores.items() if name not in free}
            return Choice(Keep({**above, **channels.above(threshold)}))
        ranking = Ranking(scores, self.options.floors(self.model, free), self._masked())
        budget = make_budget("weights", self.model, free, self.example_input, None)

        def to_share(share: float) -> Keep:
            return ranking.first(0) if budget.now() >= share else nearest(ranking, budget, share)

        return request.resolve(to_share, ranking.first)

    def remove(self, keep: Keep) -> Removal:
        free = free_groups(self.groups)
        channels = Keep({name: mask for name, mask in keep.items() if name in free})
        kept, _ = kept_positions(self.model, {name: ~mask.cpu() for name, mask in channels.items()}, self.groups)
        count = self._cut(channels)  # may raise, before anything is masked
        weights = {name: shrink(mask, kept.get(name, {})) for name, mask in keep.items() if name not in free}
        return Removal(count + self._mask(weights), kept)


#: granularity of a criterion -> what it prunes
TARGETS: dict[str, type[Target]] = {"weight": WeightTarget, "channel": ChannelTarget, "both": JointTarget}


def target_class(criterion: Criterion) -> type[Target]:
    """Return the target of a criterion; raise UsageError for an unknown granularity."""
    granularity = getattr(criterion, "granularity", None)
    if not isinstance(granularity, str) or granularity not in TARGETS:
        who = criterion.name
        raise UsageError(f"{who}: granularity {granularity!r} cannot be pruned (weight, channel or both)")
    return TARGETS[granularity]


def cut_weights(model: nn.Module) -> dict[str, int]:
    """Return the number of entries of each prunable weight that were cut."""
    dense = dense_weights(model)
    return {name: dense[name] - weight.numel() for name, weight in prunable_weights(model).items()}
