from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from secateur import After, Batch, Criterion, Data, Groups, LossFunction, Schedule, Scores, scoring, with_groups
from secateur.framework.pruning.scoring.channel_sums import over_channels, producer_parameters
from secateur.framework.pruning.scoring.gradients import each_gradient, mean_over_batches


class TaylorWeight(Criterion):
    """Sum of (w * g)^2 over each channel's weights, averaged over batches; on a trained network.

    The weights are the rows of all producers, without biases. Eval mode. Method 0 of Molchanov, Mallya, Tyree,
    Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    granularity = "channel"
    schedule: ClassVar[Schedule] = After()
    data = Data("random", batches=30)
    paper = "arXiv:1906.10771"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the mean over batches of sum (w * g)^2 of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        weights = producer_parameters(model, free, biases=False)
        with scoring(model):
            parts = each_gradient(model, batches, loss, weights)
            squares = (
                (size, over_channels(free, {name: g.mul_(weights[name].detach()).square_()
                                            for name, g in gradients.items()}))
                for size, gradients in parts
            )  # fmt: skip
            scores = mean_over_batches(squares)
        return {name: score.float() for name, score in scores.items()}
