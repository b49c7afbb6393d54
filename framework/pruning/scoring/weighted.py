"""Scores of single weights, weighted by |w| or |w - w0| before they are summed over channels."""

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
    """Base class that `weighted` adds to a criterion with `element_scores`.

    The scores are element score * |w| (`by_size`) * |w - w0| (`by_way`), summed over each channel's weights for
    channel criterions. w0 are the weights at the start of the run.
    """

    by_size = by_way = False
    _start: InitialWeights | None = None

    def start(self, model: nn.Module) -> None:
        """Copy the initial weights on the first call."""
        super().start(model)
        if self.by_way and self._start is None:
            self._start = InitialWeights.of(model)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Compute the weighted scores, higher = keep."""
        free: Groups = {}
        if self.granularity == "channel":
            free, batches = with_groups(model, batches, groups)
        elements: dict[str, Tensor] = dict(self.element_scores(model, batches, loss, free))  # type: ignore[attr-defined]
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = {name: parameters[name].detach() for name in elements}
        if self.by_size:
            elements = {name: one * weights[name].abs() for name, one in elements.items()}
        if self.by_way:
            moved = InitialWeights.moved(self._start, model, weights, type(self).__name__)
            elements = {name: one * moved[name].abs() for name, one in elements.items()}
        scores = over_channels(free, elements) if self.granularity == "channel" else elements
        return {name: score.float() for name, score in scores.items()}


def weighted(criterion: Criterion, by_size: bool = False, by_way: bool = False) -> Criterion:
    """Return a copy of the criterion with weighted element scores; the criterion itself without any weighting.

    Raises UsageError for a criterion without `element_scores`, and for one that ranks both weights and channels.
    """
    if not (by_size or by_way):
        return criterion
    kind = type(criterion)
    if not callable(getattr(criterion, "element_scores", None)) or criterion.granularity == "both":
        flag = "--use_l2" if by_size else "--use_init"
        raise UsageError(f"{flag}: {kind.__name__} has no scores of single weights")
    twin = copy.copy(criterion)
    twin.__class__ = type(kind.__name__, (Weighed, kind), {"__doc__": kind.__doc__})
    option = bool(getattr(criterion, "use_l2", False))  # the criterion's own option, which its `score` applies
    twin.__dict__ |= {"by_size": by_size or option, "by_way": by_way}
    return twin
