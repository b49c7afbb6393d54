from collections.abc import Iterable, Iterator

from torch import nn

from secateur import Batch, Groups, LossFunction
from secateur.criterions.TaylorGate import TaylorGate
from secateur.framework.pruning.scoring.channel_sums import producer_parameters
from secateur.framework.pruning.scoring.gradients import Part, each_gradient, peek
from secateur.framework.pruning.scoring.norm_scales import norm_groups, over_norms, require_norms


class BNTaylor(TaylorGate):
    """(scale * g + shift * g)^2 of the batch norm after each channel, averaged over batches.

    Equals TaylorGate with `divisor` "none" on networks with batch norms; channels without one are never pruned.
    The terms of several norms of one channel are summed before squaring. Eval mode. Method 31 of Molchanov et al.,
    2019, arXiv:1906.10771.
    """

    def __init__(self, *, divisor: str = "none") -> None:
        super().__init__(divisor=divisor)

    def check(self, model: nn.Module) -> None:
        """Raise UsageError for a network without batch norm."""
        require_norms(model, self.name)

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and its scores."""
        sample, batches = peek(batches)
        norms = norm_groups(model, groups, sample[:1], self.name)
        parameters = producer_parameters(model, norms)
        for samples, gradients in each_gradient(model, batches, loss, parameters):
            products = {name: value.detach() * gradients[name] for name, value in parameters.items()}
            yield samples, {name: self.formula(total) for name, total in over_norms(norms, products).items()}
