from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from secateur import (
    Batch,
    Before,
    Criterion,
    Data,
    Groups,
    LossFunction,
    Schedule,
    Scores,
    mean_gradients,
    prunable_weights,
    scoring,
    with_groups,
)
from secateur.framework.pruning.scoring.channel_sums import producer_parameters, sum_over_channels


class CNIP(Criterion):
    """SNIP's scores of weights and SNAP's scores of channels in one ranking, once before training.

    The scores are |w * g| / |L| of each weight and |sum w * g + b * g_b| / |L| of each channel, from one pass. The
    sparsity is that of the weights, including those in channels that are cut. Verdenius, Stol and Forré, 2020,
    arXiv:2006.00896.
    """

    granularity = "both"
    schedule: ClassVar[Schedule] = Before()
    data = Data("random", batches=5)
    paper = "arXiv:2006.00896"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the scores of prunable weights, in their shapes, and free channels, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        weights, producers = prunable_weights(model), producer_parameters(model, free)
        with scoring(model):
            gradients, mean_loss = mean_gradients(model, batches, loss, weights | producers)
        loss_size = 1e-8 + abs(mean_loss)
        gates = sum_over_channels(free, producers, gradients)
        single = {name: (gradients[name] * weight.detach()).abs() for name, weight in weights.items()}
        return {name: (score.abs() / loss_size).float() for name, score in (single | gates).items()}
