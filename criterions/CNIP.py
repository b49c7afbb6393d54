from collections.abc import Iterable

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
from secateur.framework.pruning.scoring.channel_sums import over_channels, producer_parameters


class CNIP(Criterion):
    """SNIP's scores of weights and SNAP's scores of channels in one ranking, once before training.

    The scores are |w * g| / |L| of each weight and |sum w * g + b * g_b| / |L| of each channel, from one pass. The
    sparsity is that of the weights, including those in channels that are cut. Verdenius, Stol and Forré, 2020,
    arXiv:2006.00896.
    """

    granularity = "both"
    schedule: Schedule = Before()
    data = Data("random", batches=5)
    paper = "arXiv:2006.00896"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the scores of prunable weights, in their shapes, and free channels, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        weights = prunable_weights(model)
        parameters = weights | producer_parameters(model, free)
        with scoring(model):
            gradients, mean_loss = mean_gradients(model, batches, loss, parameters)
        products = {name: gradients[name].mul_(parameter.detach()) for name, parameter in parameters.items()}
        scores = {name: products[name] for name in weights} | over_channels(free, products)
        return {name: (score.abs() / (1e-8 + abs(mean_loss))).float() for name, score in scores.items()}
