from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction
from secateur.criterions.TaylorGate import TaylorGate
from secateur.framework.pruning.scoring.cost import planned_passes
from secateur.framework.pruning.scoring.gates.curvature import Curvature, batch_curvatures
from secateur.framework.pruning.scoring.gradients import Part


class OBD(TaylorGate):
    """d2L/dz2 of a gate z = 1 on each channel behind its norm, signed, averaged over batches; after training.

    Twice the damage of optimal brain damage, z^2 d2L/dz2 / 2. Exact: for piecewise linear networks from the slopes
    of all outputs, as many backward passes as there are outputs; else, and for the joint gates of residual stages,
    a pass for each channel. Eval mode. LeCun, Denker and Solla, 1989; method 10 of arXiv:1906.10771.
    """

    def __init__(self) -> None:
        super().__init__(divisor="none")
        self._options = {}
        self._passes = 1.0

    def start(self, model: nn.Module) -> None:
        """Find out what a pass costs."""
        self._passes = planned_passes(model, self.example_input, Curvature.plan, self._passes)

    def cost(self, samples: int) -> float:
        """Passes over the slopes of the outputs, and those for single channels; see `Curvature.passes`."""
        return samples * self._passes

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """The scores of each batch and its size."""
        for samples, first, second in batch_curvatures(model, batches, loss, groups):
            yield samples, {name: self.measure(first[name], second[name]) for name in groups}

    def measure(self, first: Tensor, second: Tensor) -> Tensor:
        """The score from both derivatives."""
        return second
