from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from secateur import Batch, Groups, LossFunction
from secateur.criterions.TaylorGate import TaylorGate
from secateur.framework.pruning.scoring.gates.gradients import sample_gates
from secateur.framework.pruning.scoring.gradients import Part


class TaylorGateFG(TaylorGate):
    """Sum over samples of the squared per-sample gradients of the gates of TaylorGate, averaged over batches.

    The gradient of a sample is the sum over positions of a * dL/da, where a is the output that the gate
    multiplies, captured in the backward pass. L is the mean loss of the batch, so that the scores decrease with
    the batch size. Full-gradient method 23 of Molchanov et al., 2019, arXiv:1906.10771.
    """

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and its scores."""
        for samples, gates in sample_gates(model, batches, loss, groups):
            yield samples, {name: gate.square().sum(1) for name, gate in gates.items()}
