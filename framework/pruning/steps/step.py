"""One pruning step of weights, channels or both: score, check, choose, remove."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers, prunable_weights, tensor_name
from secateur.framework.network.lineage import Companion, KeptIndices, lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import dense_weights
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, free_groups
from secateur.framework.pruning.channels.slicing import kept_positions, shrink
from secateur.framework.pruning.channels.verification import not_removable
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores, check_scores
from secateur.framework.pruning.selection.budgets import (
    BUDGETS,
    LATENCY_TOLERANCE,
    TOLERANCE,
    Budget,
    Macs,
    Nodes,
    make_budget,
)
from secateur.framework.pruning.selection.channel_ranking import (
    CHANNEL_SCOPES,
    INPUTS,
    ChannelRanking,
    check_reachable,
    nearest,
    to_budget,
)
from secateur.framework.pruning.selection.input_features import NetworkInputs, first_layer, input_readers
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import SCOPES, Keep, Ranking, select
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.training.events import PruneEvent
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from secateur.utils.suggest import unknown

#: options and fields of an iterative schedule for which only channels are ranked
ONLY_CHANNELS = ("round_to", "group_size", "flops", "fixed_layer", "rank_inputs")


@dataclass(frozen=True)
class Request:
    """How much to prune: up to a share of the dense network, a number of units, or the less of the two.

    Attributes:
        share: Target sparsity after the step, or None.
        units: Number of weights or channels that the step prunes, or None.
    """

    share: float | None = None
    units: int | None = None


class PruningStep(ABC):
    """Base class: score and prune one network in one or more steps; a subclass says which units are ranked.

    Args:
        model: The network.
        criterion: The criterion, whose granularity determines the subclass, see `step_class`.
        example_input: One input batch, for tracing and for measured budgets.
        options: What may be pruned, and how.
        optimizer: Optimizer whose state is cut together with the network.
        companions: Further tensors by parameter name that are cut together with the network.

    Attributes:
        groups: The present channel groups.
        inputs: The network's inputs, if they are ranked.
    """

    #: allowed scopes and budgets, the first of which is the default
    scopes: ClassVar[tuple[str, ...]]
    budgets: ClassVar[tuple[str, ...]]
    #: options and fields of an iterative schedule without a meaning for the step, and what it does, in messages
    unused: ClassVar[tuple[str, ...]] = ()
    does = "prunes weights"
    #: name of the units in messages, and the reason for pruning fewer than requested
    units = "weights"
    why_short = "the remaining weights are protected"

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        example_input: Tensor,
        options: PruneOptions | None = None,
        optimizer: Any = None,
        companions: Sequence[Companion] = (),
    ) -> None:
        options = options or PruneOptions()
        self.check_options(criterion, options)
        self.model, self.criterion, self.example_input = model, criterion, example_input
        criterion.example_input = example_input[:1]
        with held_to_contract(criterion, "check", model):
            criterion.check(model)
        if optimizer is not None:
            unwrapped(optimizer)  # raises now instead of after a change of the model
        self.optimizer, self.companions = optimizer, companions
        self.scope, self.budget = options.scope or criterion.scope, options.budget or self.budgets[0]
        self.options = replace(options, scope=self.scope, budget=self.budget)
        self.groups: dict[str, ChannelGroup] = channel_groups(
            model, example_input, options.protect, inexact=options.inexact, attention=options.attention
        )
        if self.units == "channels" and not free_groups(self.groups):
            reasons = sorted({str(group.protected) for group in self.groups.values()})
            raise UsageError(f"{type(model).__name__} has no channel to prune: {'; '.join(reasons)}")
        if options.min_channels == 0:
            for name in not_removable(model, example_input[:1], self.groups):
                self.groups[name] = replace(self.groups[name], removable=False)
        readers = input_readers(model, example_input, self.groups) if options.rank_inputs else []
        ranked = readers and not any(map(options.protects, readers))
        self.inputs = NetworkInputs(model, readers) if ranked else None
        self._dense = copy.deepcopy(model) if self.budget == "latency" else None

    def __call__(
        self,
        request: float | Request,
        batches: Iterable[Batch],
        loss: LossFunction,
        strict: bool = True,
        scores: Scores | None = None,
    ) -> PruneEvent:
        """Prune to a share of the dense network, or as a `Request` says, as near to it as possible.

        With `strict`, raises UsageError without pruning if a budget other than nodes cannot be met. `scores`
        replace those of the criterion.
        """
        batches = list(batches)
        checked = self.check(self.score(batches, loss) if scores is None else scores)
        inputs = {} if self.inputs is None else {INPUTS: self.inputs.scores(self.criterion, batches, loss)}
        request = request if isinstance(request, Request) else Request(share=request)
        chosen, decisive = self.choose(checked | inputs, request, strict)
        removed, kept_indices = self._remove(chosen)
        self.criterion.step += 1
        keep = Keep({name: mask for name, mask in chosen.items() if name != INPUTS})
        return PruneEvent(
            decisive.share, self.sparsity(), keep, checked, removed, chosen.get(INPUTS),
            number=decisive.units, budget=self.budget, kept_indices=kept_indices,
        )  # fmt: skip

    @classmethod
    def check_options(cls, criterion: Criterion, options: PruneOptions) -> None:
        """Raise UsageError for options that have no meaning for this kind of step."""
        scope, name = options.scope or criterion.scope, criterion.name
        if scope not in cls.scopes:
            raise UsageError(f"{name}: {unknown('scope', scope, cls.scopes)}", argument="scope")
        if cls.budgets == ("weights",) and options.budget not in (None, "weights"):
            message = f"budget {options.budget!r} is for channels: {name} {cls.does}, by the budget 'weights'"
            raise UsageError(message, argument="budget")
        check_unused(options, cls.unused, f"{name}, which {cls.does}")

    @classmethod
    def scored(cls, groups: Groups) -> Groups | None:
        """Return the groups that the criterion scores: the free ones, None if it scores weights alone."""
        return free_groups(groups)

    def score(self, batches: Iterable[Batch], loss: LossFunction) -> Scores:
        """Return the criterion's scores of the present network, unchecked."""
        with held_to_contract(self.criterion, "score", self.model):
            return self.criterion.score(self.model, batches, loss, self.scored(self.groups))

    def check(self, scores: Scores) -> dict[str, Tensor]:
        """Return the scores as float32; raise UsageError if they break the contract."""
        return check_scores(scores, self.model, self.groups, self.criterion)

    @property
    def scorings(self) -> int:
        """Number of scorings of a step: one, and one for each layer whose inputs are ranked."""
        return 1 if self.inputs is None else 1 + len(self.inputs.readers)

    def choose(self, scores: dict[str, Tensor], request: Request, strict: bool = True) -> tuple[Keep, Request]:
        """Return the selection that a request gives with these scores, and the part of the request that decided.

        A fixed threshold of the criterion replaces the request unless its share is 0. With `strict`, raises
        UsageError if a budget other than nodes cannot be met.
        """
        ranking, threshold = self._ranking(scores), self.criterion.threshold
        if threshold is not None and request.share != 0:
            return ranking.above(threshold), Request()
        choices = []
        if request.share is not None:
            choices.append((self._to_share(ranking, request.share, strict), Request(share=request.share)))
        if request.units is not None:
            choices.append((ranking.up_to(request.units), Request(units=request.units)))
        return min(choices, key=lambda choice: choice[0].removed)

    @abstractmethod
    def _ranking(self, scores: dict[str, Tensor]) -> Ranking:
        """Return the ranking of the units."""

    @abstractmethod
    def _to_share(self, ranking: Any, share: float, strict: bool) -> Keep:
        """Return the selection that brings the sparsity nearest to `share`."""

    def _remove(self, keep: Keep) -> tuple[int, KeptIndices]:
        """Cut the pruned channels, and mask the pruned weights and inputs.

        Returns the number of pruned units, and the kept positions where weights are ranked together with channels.
        """
        channels = Keep({name: mask for name, mask in keep.items() if name in self.groups})
        weights = {name: mask for name, mask in keep.items() if name not in channels and name != INPUTS}
        kept: KeptIndices = {}
        if channels:
            if weights:
                off = {name: ~mask.cpu() for name, mask in channels.items()}
                kept, _ = kept_positions(self.model, off, self.groups)
            how = self.optimizer, self.companions, self.options.fold, self.example_input
            self.groups = cut(self.model, channels, self.groups, *how)  # may raise, before anything is masked
        count = channels.removed
        if weights:
            count += self._mask({name: shrink(mask, kept.get(name, {})) for name, mask in weights.items()})
        if self.inputs is not None:
            count += self.inputs.mask(keep[INPUTS])
        return count, kept

    def budget_now(self) -> Budget:
        """Return the budget of the present network."""
        return make_budget(self.budget, self.model, free_groups(self.groups), self.example_input, self._dense)

    def sparsity(self) -> float:
        """Return the present sparsity, in the budget of the step."""
        return self.budget_now().now()

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

    def _unspared(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scores with +inf, which is never pruned, for the spared weights."""
        return dict(scores) | {name: torch.full_like(scores[name], torch.inf) for name in self.spared()}

    def _masked(self) -> dict[str, Tensor]:
        weights = prunable_weights(self.model)
        return {name: mask for name, mask in Masks(self.model).items() if name in weights}

    def _mask(self, keep: Mapping[str, Tensor]) -> int:
        """Mask the pruned weights; return the number of newly masked ones."""
        held, newly = self._masked(), 0
        for name, mask in keep.items():
            alive = held[name].to(mask.device) != 0 if name in held else True
            newly += int((alive & ~mask).sum())
        if newly:
            Masks(self.model).hold(keep)
        return newly


class WeightStep(PruningStep):
    """Single weights, which are masked. Sparsity is the share of the dense network's prunable weights."""

    scopes, budgets = SCOPES, ("weights",)
    unused = (*ONLY_CHANNELS, "min_channels", "keep_share", "attention", "inexact", "fold")

    @classmethod
    def scored(cls, groups: Groups) -> Groups | None:
        return None

    def _ranking(self, scores: dict[str, Tensor]) -> Ranking:
        return Ranking(self._unspared(scores), current=self._masked())

    def _to_share(self, ranking: Ranking, share: float, strict: bool) -> Keep:
        dense, weights = dense_weights(self.model), prunable_weights(self.model)
        cut_before = {name: dense[name] - weight.numel() for name, weight in weights.items()}
        return select(ranking.scores, share, scope=self.scope, current=self._masked(), gone=cut_before)


class ChannelStep(PruningStep):
    """Channels, which are cut, and with `rank_inputs` the network's inputs, which are masked.

    Sparsity is a share of the budget, by default the dense network's nodes.
    """

    scopes, budgets = CHANNEL_SCOPES, BUDGETS
    does, units = "prunes channels", "channels"
    why_short = "the remaining channels are protected or the last of their layer"

    def _ranking(self, scores: dict[str, Tensor]) -> ChannelRanking:
        penalties = {}
        if self.options.flops > 0:
            macs = Macs(self.model, free_groups(self.groups), self.example_input)
            penalties = {name: self.options.flops * macs.freed(name) for name in scores if name != INPUTS}
        inputs = None if self.inputs is None else self.inputs.alive()
        return ChannelRanking(self.model, self.groups, scores, self.options, penalties, inputs)

    def _to_share(self, ranking: ChannelRanking, share: float, strict: bool) -> Keep:
        budget = self.budget_now()
        if isinstance(budget, Nodes) and budget.per_channel and not any(budget.per_channel.values()):
            raise UsageError(
                "no prunable channel is a node, an output of a convolution or linear layer: use budget macs",
                argument="budget",
            )
        return to_budget(ranking, budget, share, strict)

    def check_reachable(self, sparsity: float) -> None:
        if self.criterion.threshold is None:
            equal = {name: torch.zeros(group.channels) for name, group in free_groups(self.groups).items()}
            ranking = ChannelRanking(self.model, self.groups, equal, self.options)
            check_reachable(ranking, self.budget_now(), sparsity)


class JointStep(PruningStep):
    """Weights and channels in one ranking: channels are cut, and then the other pruned weights are masked.

    Sparsity is the share of the dense network's prunable weights that are masked or in a channel that is cut.
    """

    scopes, budgets = ("global",), ("weights",)
    unused = (*ONLY_CHANNELS, "per_step", "most")
    does = "ranks weights and channels together"

    def _ranking(self, scores: dict[str, Tensor]) -> Ranking:
        floors = self.options.floors(self.model, free_groups(self.groups))
        return Ranking(self._unspared(scores), floors, self._masked())

    def _to_share(self, ranking: Ranking, share: float, strict: bool) -> Keep:
        budget = self.budget_now()
        return ranking.first(0) if budget.now() >= share else nearest(ranking, budget, share)


#: granularity of a criterion -> what it prunes
STEPS: dict[str, type[PruningStep]] = {"weight": WeightStep, "channel": ChannelStep, "both": JointStep}


def step_class(criterion: Criterion) -> type[PruningStep]:
    """Return the kind of step of a criterion; raise UsageError for an unknown granularity."""
    granularity = getattr(criterion, "granularity", None)
    if not isinstance(granularity, str) or granularity not in STEPS:
        who = criterion.name
        raise UsageError(f"{who}: granularity {granularity!r} cannot be pruned (weight, channel or both)")
    return STEPS[granularity]


def check_unused(given: object, unused: Sequence[str], why: str) -> None:
    """Raise UsageError for attributes that have no meaning and differ from their default."""
    for name in unused:
        if hasattr(given, name) and getattr(given, name) != getattr(type(given), name):
            raise UsageError(f"{name} cannot be combined with {why}", argument=name)


def nothing_below(criterion: Criterion, removed: int) -> str | None:
    """Return the warning for a fixed threshold that has pruned nothing; None if there is no reason for it."""
    if criterion.threshold is None or removed:
        return None
    remedy = "longer training, a stronger penalty in the loss or a higher threshold"
    limit = f"no score is below the threshold {criterion.threshold:g}"
    return f"{criterion.name}: nothing was pruned, {limit}: try {remedy}"
