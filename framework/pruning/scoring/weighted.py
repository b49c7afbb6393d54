"""Scores of single weights, weighted by |w| or |w - w0| before they are summed over channels."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import over_channels
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores
from secateur.framework.pruning.scoring.inputs import with_groups
from secateur.utils.errors import UsageError

#: attributes that the run sets
OF_THE_RUN = ("seed", "step", "example_input")
#: methods of the criterion that are called directly
DELEGATED = ("check", "cost", "observe", "input_scores")


class InitialWeights:
    """Copies of all parameters, and the original indices of their channels at that time."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._kept: dict[tuple[str, int], Tensor] = {}

    def record(self, model: nn.Module) -> None:
        """Copy the present parameters of a model on the first call."""
        if not self._tensors:
            named = model.named_parameters(remove_duplicate=False)
            self._tensors = {name: parameter.detach().clone() for name, parameter in named}
            self._kept = dict(lineage_of(model).kept)

    def moved(self, model: nn.Module, weights: Mapping[str, Tensor], who: str) -> dict[str, Tensor]:
        """Return w - w0 of each weight; UsageError if w0 is missing or no weight has changed."""
        if not self._tensors:
            raise UsageError(f"{who}: use_init needs the initial weights: call start(model) before training")
        unknown = [name for name in weights if name not in self._tensors]
        if unknown:
            raise UsageError(f"{who}: use_init has no initial weights of {', '.join(map(repr, unknown))}")
        lineage, differences = lineage_of(model), {}
        for name, weight in weights.items():
            initial = self._tensors[name]
            for dim in range(initial.dim()):
                left = lineage.left_since(self._kept, name, dim)
                if left is not None:
                    initial = initial.index_select(dim, left.to(initial.device))
            differences[name] = weight - initial.to(weight)
        if not any(bool(difference.any()) for difference in differences.values()):
            raise UsageError(f"{who}: use_init: the weights equal the initial weights, all scores would be zero")
        return differences


class Weighted(Criterion):
    """A criterion with `element_scores`, weighted; it has the name and the attributes of that criterion.

    The scores are element score * |w| (`by_size`) * |w - w0| (`by_way`), summed over each channel's weights for
    channel criterions. w0 are the weights at the start of the run.
    """

    def __init__(self, criterion: Any, by_size: bool, by_way: bool) -> None:
        super().__init__(criterion=criterion, by_size=by_size, by_way=by_way)
        for attribute in (*Criterion.__annotations__, *DELEGATED):
            setattr(self, attribute, getattr(criterion, attribute))
        self.criterion, self.by_size, self.by_way = criterion, by_size, by_way
        self.uses_initial_weights = by_way or criterion.uses_initial_weights
        self._initial = InitialWeights()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in OF_THE_RUN and "criterion" in vars(self):
            setattr(self.criterion, name, value)

    def __repr__(self) -> str:
        return repr(self.criterion)

    def start(self, model: nn.Module) -> None:
        """Call `start` of the criterion, and copy the initial weights on the first call."""
        self.criterion.start(model)
        if self.by_way:
            self._initial.record(model)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the weighted scores, in the shapes of the criterion's."""
        free: Groups = {}
        if self.granularity == "channel":
            free, batches = with_groups(model, batches, groups)
        elements: dict[str, Tensor] = dict(self.criterion.element_scores(model, batches, loss, free))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        weights = {name: parameters[name].detach() for name in elements}
        if self.by_size:
            elements = {name: element * weights[name].abs() for name, element in elements.items()}
        if self.by_way:
            moved = self._initial.moved(model, weights, self.name)
            elements = {name: element * moved[name].abs() for name, element in elements.items()}
        scores = over_channels(free, elements) if self.granularity == "channel" else elements
        return {name: score.float() for name, score in scores.items()}


def weighted(criterion: Criterion, by_size: bool = False, by_way: bool = False) -> Criterion:
    """Return the criterion with weighted element scores; the criterion itself without any weighting.

    Raises UsageError for a criterion without `element_scores`, and for one that ranks both weights and channels.
    """
    if not (by_size or by_way):
        return criterion
    if not callable(getattr(criterion, "element_scores", None)) or criterion.granularity == "both":
        option = "use_l2" if by_size else "use_init"
        raise UsageError(f"{option}: {criterion.name} has no scores of single weights", argument=option)
    return Weighted(criterion, by_size, by_way)
