"""Scores of single weights, weighted by |w| or |w - w0| before they are summed over channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import over_channels
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores
from secateur.framework.pruning.scoring.inputs import with_groups
from secateur.utils.errors import UsageError


@dataclass(frozen=True)
class InitialWeights:
    """Copies of all parameters, and the original indices of their channels at that time."""

    tensors: dict[str, Tensor]
    kept: dict[tuple[str, int], Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> InitialWeights:
        """Copy the present parameters of a model."""
        named = model.named_parameters(remove_duplicate=False)
        return cls({name: parameter.detach().clone() for name, parameter in named}, dict(lineage_of(model).kept))

    def now(self, model: nn.Module, name: str) -> Tensor:
        """Return the copy of a parameter without the channels that were cut since."""
        values, lineage = self.tensors[name], lineage_of(model)
        for dim in range(values.dim()):
            left = lineage.kept.get((name, dim))
            if left is not None:
                before = self.kept.get((name, dim), torch.arange(values.shape[dim]))
                values = values.index_select(dim, torch.isin(before, left).nonzero().flatten().to(values.device))
        return values

    @staticmethod
    def moved(
        initial: InitialWeights | None, model: nn.Module, weights: Mapping[str, Tensor], who: str
    ) -> dict[str, Tensor]:
        """Return w - w0 of each weight; UsageError if w0 is missing or no weight has changed."""
        if initial is None:
            raise UsageError(f"{who}: use_init needs the initial weights: call start(model) before training")
        unknown = [name for name, weight in weights.items() if name not in initial.tensors]
        if unknown:
            raise UsageError(f"{who}: use_init has no initial weights of {', '.join(map(repr, unknown))}")
        differences = {name: weight - initial.now(model, name).to(weight) for name, weight in weights.items()}
        if not any(bool(difference.any()) for difference in differences.values()):
            raise UsageError(f"{who}: use_init: the weights equal the initial weights, all scores would be zero")
        return differences


class Weighted(Criterion):
    """The base class that `weighted` adds to that of a criterion with `element_scores`.

    The scores are element score * |w| (`by_size`) * |w - w0| (`by_way`), summed over each channel's weights for
    channel criterions. w0 are the weights at the start of the run.
    """

    element_scores: Callable[..., Mapping[str, Tensor]]
    _by_size: bool
    _by_way: bool
    _initial_weights: InitialWeights | None = None

    def start(self, model: nn.Module) -> None:
        """Call `start` of the criterion, and copy the initial weights on the first call."""
        super().start(model)
        if self._by_way and self._initial_weights is None:
            self._initial_weights = InitialWeights.of(model)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the weighted scores, in the shapes of the criterion's."""
        free: Groups = {}
        if self.granularity == "channel":
            free, batches = with_groups(model, batches, groups)
        elements: dict[str, Tensor] = dict(self.element_scores(model, batches, loss, free))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = {name: parameters[name].detach() for name in elements}
        if self._by_size:
            elements = {name: element * weights[name].abs() for name, element in elements.items()}
        if self._by_way:
            moved = InitialWeights.moved(self._initial_weights, model, weights, self.name)
            elements = {name: element * moved[name].abs() for name, element in elements.items()}
        scores = over_channels(free, elements) if self.granularity == "channel" else elements
        return {name: score.float() for name, score in scores.items()}


def weighted(criterion: Criterion, by_size: bool = False, by_way: bool = False) -> Criterion:
    """Return a copy of the criterion with weighted element scores; the criterion itself without any weighting.

    Raises UsageError for a criterion without `element_scores`, and for one that ranks both weights and channels.
    """
    if not (by_size or by_way):
        return criterion
    if not callable(getattr(criterion, "element_scores", None)) or criterion.granularity == "both":
        flag = "--use_l2" if by_size else "--use_init"
        raise UsageError(f"{flag}: {criterion.name} has no scores of single weights")
    kind = type(criterion)
    twin: Any = copy.copy(criterion)
    twin.__class__ = type(kind.__name__, (Weighted, kind), {"__doc__": kind.__doc__})
    twin._by_size, twin._by_way = by_size, by_way
    twin.uses_initial_weights = by_way or criterion.uses_initial_weights
    return cast(Criterion, twin)
