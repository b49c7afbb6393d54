from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from torch import nn

from secateur import After, Batch, Criterion, Data, Groups, LossFunction, Schedule, Scores, scoring, with_groups
from secateur.framework.pruning.scoring.gates.gradients import batch_gates, check_divisor, divided
from secateur.framework.pruning.scoring.gradients import Part, mean_over_batches


class TaylorGate(Criterion):
    """(dL/dz)^2 of a gate z = 1 on each channel after its norm, averaged over batches; on a trained network.

    dL/dz is scale * g + shift * g of the batch norm that follows the producer, or sum w * g + b * g without one.
    The contributions of n producers (a residual stage) are summed, squared, and divided by n (`divisor` "n"), n *
    n ("n2", the squared mean gradient) or 1 ("none"). Eval mode. Taylor-FO-BN (method 22) of Molchanov,
    Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    granularity = "channel"
    schedule: ClassVar[Schedule] = After()
    data = Data("random", batches=30)
    paper = "arXiv:1906.10771"

    def __init__(self, *, divisor: str = "n") -> None:
        check_divisor(self.name, divisor)
        super().__init__(divisor=divisor)
        self.divisor = divisor

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the mean over batches of (dL/dz)^2 of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        with scoring(model):
            scores = mean_over_batches(self.parts(model, batches, loss, free))
        return {name: score.float() for name, score in divided(free, scores, self.divisor).items()}

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and its scores."""
        for samples, gates in batch_gates(model, batches, loss, groups):
            yield samples, {name: gate.square() for name, gate in gates.items()}
