from __future__ import annotations

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
)


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
        """Return |w * g| / (1e-8 + |L|) of every prunable weight, in the weight's shape."""
        weights = prunable_weights(model)
        with scoring(model):
            gradients, mean_loss = mean_gradients(model, batches, loss, weights)
        return {
            name: gradient.mul_(weights[name].detach()).abs_().div_(1e-8 + abs(mean_loss)).float()
            for name, gradient in gradients.items()
        }
