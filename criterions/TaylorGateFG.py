from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from secateur import Batch, Groups, LossFunction
from secateur.criterions.TaylorGate import TaylorGate
from secateur.framework.pruning.scoring.gates.gradients import sample_gates
from secateur.framework.pruning.scoring.gradients import Part


class TaylorGateFG(TaylorGate):
    """As TaylorGate, but each sample's part of dL/dz is squared, and the squares of a batch are added.

    A sample's part is the sum over positions of a * dL/da, a the output that the gate multiplies, heard in the
    backward pass; L is the mean loss of the batch, so a score falls with the size of the batches. Full-gradient
    method 23 of Molchanov et al., 2019, arXiv:1906.10771.
    """

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """The scores of each batch and its size."""
        for samples, gates in sample_gates(model, batches, loss, groups):
            yield samples, {name: gate.square().sum(1) for name, gate in gates.items()}
