from collections.abc import Iterable

from torch import Tensor, nn

from secateur import Batch, LossFunction
from secateur.criterions.LossBased import LossBased
from secateur.framework.pruning.scoring.gradients import each_gradient, mean_of


class Fisher(LossBased):
    """Sum of w^2 * F over each channel's weights, where F is the mean of g^2 over batches; during training.

    g is the gradient of one batch's mean loss (of outputs / `temperature`), and batches are weighted by their
    sizes. With `per_example` g is that of one sample's loss, which gives the diagonal of the empirical Fisher
    matrix and takes one pass per sample. Lubana and Dick, 2020, arXiv:2009.11839, after Theis, Korshunova, Tejani
    and Huszár, 2018, arXiv:1801.05787.
    """

    def __init__(self, *, per_example: bool = False, temperature: float = 5.0, samples: int = 2560) -> None:
        super().__init__(temperature=temperature, samples=samples)
        self.per_example = per_example

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return w^2 * F of each weight, where `gradient` is F, the mean squared gradient."""
        return gradient.mul_(weight).mul_(weight)

    def gradients(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """Return F of the given parameters, in their shapes."""
        if self.per_example:
            batches = (sample for x, y in batches for sample in zip(x.split(1), y.split(1), strict=True))
        parts = each_gradient(model, batches, loss, parameters)
        return mean_of((size, {name: g.square_() for name, g in part.items()}) for size, part in parts)
