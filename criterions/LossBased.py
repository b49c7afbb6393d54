from collections.abc import Iterable

from torch import Tensor, nn

from secateur import Batch, Criterion, Data, During, Groups, LossFunction, Scores, scoring, with_groups
from secateur.framework.pruning.scoring.channel_sums import over_channels, producer_parameters
from secateur.framework.pruning.scoring.gradients import check_flow_options, mean_gradients, softened


class LossBased(Criterion):
    """Sum of |w * g| over each channel's weights, for loss preservation; during training.

    g is the gradient of the mean loss of outputs / `temperature` over `samples` samples, in eval mode. The weights
    are the rows of all producers, without biases. Lubana and Dick, 2020, arXiv:2009.11839.
    """

    granularity = "channel"
    schedule = During()
    data = Data("random", samples=2560)
    paper = "arXiv:2009.11839"
    recommended = {"T": 5.0, "keep_share": {"rounds": 0.05}}

    def __init__(self, *, temperature: float = 5.0, samples: int = 2560) -> None:
        check_flow_options(self.name, temperature, samples)
        super().__init__(samples=samples)
        self.temperature = temperature
        self.data = Data("random", samples=samples)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the sum of the weights' scores of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        sums = over_channels(free, self.element_scores(model, batches, loss, free))
        return {name: total.float() for name, total in sums.items()}

    def element_scores(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> dict[str, Tensor]:
        """Return the formula of every weight that produces a channel of the groups, by name, in its shape."""
        weights = producer_parameters(model, groups, biases=False)
        with scoring(model):
            gradients = self.gradients(model, batches, softened(loss, self.temperature), weights)
        return {name: self.formula(weight.detach(), gradients[name]) for name, weight in weights.items()}

    def gradients(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """Return g of the given parameters, in their shapes."""
        return mean_gradients(model, batches, loss, parameters)[0]

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return |w * g| of each weight."""
        return gradient.mul_(weight).abs_()
