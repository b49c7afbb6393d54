"""Scores of single weights, weighed by |w| or by |w - w0| before they are added up to channels."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import over_channels
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores
from secateur.framework.pruning.scoring.initial_weights import InitialWeights
from secateur.framework.pruning.scoring.inputs import with_groups
from secateur.utils.errors import UsageError


class Weighed(Criterion):
    """What a criterion with `element_scores` becomes by `weighted`: its scores are built from those.

    The sum over each channel's weights of element score * |w| (`by_size`) * |w - w0| (`by_way`), of a criterion of
    weights the products themselves. w0 are the weights where the run began.
    """

    by_size = by_way = False
    _start: InitialWeights | None = None

    def start(self, model: nn.Module) -> None:
        """Remember the weights, the first time."""
        super().start(model)
        if self.by_way and self._start is None:
            self._start = InitialWeights.of(model)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """The weighed scores, higher = keep."""
        free: Groups = {}
        if self.granularity == "channel":
            free, batches = with_groups(model, batches, groups)
        elements: dict[str, Tensor] = dict(self.element_scores(model, batches, loss, free))  # type: ignore[attr-defined]
        own = dict(model.named_parameters(remove_duplicate=False))
        weights = {name: own[name].detach() for name in elements}
        if self.by_size:
            elements = {name: one * weights[name].abs() for name, one in elements.items()}
        if self.by_way:
            moved = InitialWeights.moved(self._start, model, weights, type(self).__name__)
            elements = {name: one * moved[name].abs() for name, one in elements.items()}
        found = over_channels(free, elements) if self.granularity == "channel" else elements
        return {name: one.float() for name, one in found.items()}


def weighted(criterion: Criterion, by_size: bool = False, by_way: bool = False) -> Criterion:
    """A copy of the criterion that weighs its element scores; the criterion itself where nothing is asked for.

    UsageError for a criterion without `element_scores`, and for one that ranks weights beside channels.
    """
    if not (by_size or by_way):
        return criterion
    kind = type(criterion)
    if not callable(getattr(criterion, "element_scores", None)) or criterion.granularity == "both":
        flag = "--use_l2" if by_size else "--use_init"
        raise UsageError(f"{flag}: {kind.__name__} has no scores of single weights")
    found = copy.copy(criterion)
    found.__class__ = type(kind.__name__, (Weighed, kind), {"__doc__": kind.__doc__})
    own = bool(getattr(criterion, "use_l2", False))  # an option of its own, which its score knows of
    found.__dict__ |= {"by_size": by_size or own, "by_way": by_way}
    return found
