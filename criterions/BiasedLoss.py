from collections.abc import Iterable

from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction
from secateur.criterions.LossBased import LossBased
from secateur.framework.pruning.scoring.weighted import InitialWeights


class BiasedLoss(LossBased):
    """Sum of w^2 * |g| over each channel's weights: loss preservation biased to large weights; during training.

    With `use_init` the sum of |w - w0| * |w * g|, where w0 are the weights at the start of the run. g and the
    other options are those of LossBased. Lubana and Dick, 2020, arXiv:2009.11839.
    """

    recommended = {
        "T": 5.0,
        "keep_share": {"rounds": 0.05},
        "use_init": {"during": True, "after": True, "rounds": True, "iterative": True},
    }

    def __init__(self, *, use_init: bool = False, temperature: float = 5.0, samples: int = 2560) -> None:
        super().__init__(temperature=temperature, samples=samples)
        self.use_init = self.uses_initial_weights = use_init
        self._initial = InitialWeights()

    def start(self, model: nn.Module) -> None:
        """Copy the initial weights on the first call."""
        if self.use_init:
            self._initial.record(model)

    def element_scores(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> dict[str, Tensor]:
        """Return w^2 * |g|, or |w - w0| * |w * g|, of every weight that produces a channel of the groups, by name.

        With `use_init`, raises UsageError if initial weights are missing or no weight has changed.
        """
        elements = super().element_scores(model, batches, loss, groups)
        factors = {name: model.get_parameter(name).detach() for name in elements}
        if self.use_init:
            factors = self._initial.moved(model, factors, self.name)
        return {name: element.mul_(factors[name]).abs_() for name, element in elements.items()}
