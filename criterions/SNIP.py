from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, Data, LossFunction, Scores
from secateur.framework.pruning.scoring.gradients import mean_gradients
from secateur.framework.schedules.base import Before, Schedule


class SNIP(Criterion):
    """Connection sensitivity |w * dL/dw| / |L|, once before training.

    The gradient is that of the mean loss over all scoring samples, in eval mode. Lee, Ajanthan and Torr,
    2018, arXiv:1810.02340.
    """

    granularity = "weight"
    schedule: ClassVar[Schedule] = Before()
    data = Data("random", batches=5)
    paper = "arXiv:1810.02340"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """|w * g| / (1e-8 + |L|) of every prunable weight, in the weight's shape."""
        weights = prunable_weights(model)
        with scoring(model):
            gradients, mean_loss = mean_gradients(model, batches, loss, weights)
        return {
            name: gradient.mul_(weights[name].detach()).abs_().div_(1e-8 + abs(mean_loss)).float()
            for name, gradient in gradients.items()
        }
