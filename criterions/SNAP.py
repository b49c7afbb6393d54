from collections.abc import Iterable

from torch import Tensor, nn

from secateur import Batch, Before, Criterion, Data, Groups, LossFunction, Schedule, Scores, scoring, with_groups
from secateur.framework.pruning.scoring.gates.gradients import mean_gates
from secateur.framework.pruning.scoring.input_features import input_gates


class SNAP(Criterion):
    """Node sensitivity |dL/dc| / |L| of a gate c = 1 on each channel, once before training.

    The gate multiplies the producer's output z before the norm, so that dL/dc = sum z * dL/dz over samples and
    positions = sum w * g + b * g_b over the channel's rows and bias, which needs no gate in the network. Several
    producers of one channel are summed before the absolute value. Verdenius, Stol and Forré, 2020,
    arXiv:2006.00896.
    """

    granularity = "channel"
    schedule: Schedule = Before()
    data = Data("random", batches=5)
    paper = "arXiv:2006.00896"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return |dL/dc| / (1e-8 + |L|) of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        with scoring(model):
            gates, mean_loss = mean_gates(model, batches, loss, free, "producer")
        return {name: (gate.abs() / (1e-8 + abs(mean_loss))).float() for name, gate in gates.items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return |sum w * g| / (1e-8 + |L|) of each column of the first layer's weight, `(inputs,)`."""
        gates, mean_loss = input_gates(model, batches, loss, layer)
        return (gates.abs() / (1e-8 + abs(mean_loss))).float()
