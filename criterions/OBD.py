from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction
from secateur.criterions.TaylorGate import TaylorGate
from secateur.framework.pruning.scoring.cost import planned_passes
from secateur.framework.pruning.scoring.gates.curvature import Curvature, batch_curvatures
from secateur.framework.pruning.scoring.gradients import Part


class OBD(TaylorGate):
    """Signed d2L/dz2 of a gate z = 1 on each channel after its norm, averaged over batches; after training.

    The score is twice the saliency of optimal brain damage, z^2 d2L/dz2 / 2. It is exact: for piecewise linear
    networks it is computed from the gradients of all outputs, with one backward pass per output; otherwise, and
    for the joint gates of residual stages, with one pass per channel. Eval mode. LeCun, Denker and Solla, 1989;
    method 10 of arXiv:1906.10771.
    """

    def __init__(self) -> None:
        super().__init__(divisor="none")
        self._passes = 1.0

    def start(self, model: nn.Module) -> None:
        """Determine the number of passes per sample."""
        self._passes = planned_passes(model, self.example_input, Curvature.plan, self._passes)

    def cost(self, samples: int) -> float:
        """Return the cost of the backward passes per output and per channel, see `Curvature.passes`."""
        return samples * self._passes

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and its scores."""
        for samples, first, second in batch_curvatures(model, batches, loss, groups):
            yield samples, {name: self.measure(first[name], second[name]) for name in groups}

    def measure(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the score, computed from the first and second derivatives."""
        return second
