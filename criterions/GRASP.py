from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from secateur import Batch, Before, Criterion, Data, Groups, LossFunction, Schedule, Scores, prunable_weights
from secateur.framework.pruning.scoring.gradient_flow import GradientFlow
from secateur.framework.pruning.scoring.gradients import check_temperature


class GRASP(Criterion):
    """Gradient signal preservation w * (H g), once before training: the highest -w * (H g) is pruned first.

    g is the gradient of the mean loss of outputs / `temperature` over all samples with respect to the prunable
    weights, H its Hessian; eval mode. The options `train_batch_norm`, `halves` (split each batch in two) and
    `xavier` (re-initialise linear weights for the scoring) reproduce the authors' code. `original_polarity`
    reverses the ranking, as in SNIP-it's code. Wang, Zhang and Grosse, 2020, arXiv:2002.07376.
    """

    granularity: ClassVar[str] = "weight"
    schedule: ClassVar[Schedule] = Before()
    data = Data("balanced", per_class=25)
    paper = "arXiv:2002.07376"

    def __init__(
        self, *, temperature: float = 200.0, train_batch_norm: bool = False, halves: bool = False,
        xavier: bool = False, original_polarity: bool = False,
    ) -> None:  # fmt: skip
        check_temperature(self.name, temperature)
        super().__init__(temperature=temperature, train_batch_norm=train_batch_norm, halves=halves)
        self.xavier, self.original_polarity = xavier, original_polarity
        self._flow = GradientFlow(temperature=temperature, train_batch_norm=train_batch_norm, halves=halves)

    def cost(self, samples: int) -> float:
        """Return the cost of one pass for g and one that is differentiated twice."""
        return 3 * samples

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the signed w * (H g) of every prunable weight, in the weight's shape."""
        products = self.products(model, batches, loss)
        return {name: products[name].float() for name in prunable_weights(model)}

    def products(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, extra: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Return the signed w * (H g) of all prunable weights and of the parameters named in `extra`."""
        flow = replace(self._flow, xavier=self.generator()) if self.xavier else self._flow
        products = flow.products(model, batches, loss, extra)
        return {name: -flow for name, flow in products.items()} if self.original_polarity else products
