from collections.abc import Iterable

import torch
from torch import nn

from secateur import Batch, Before, Criterion, Groups, LossFunction, Scores, prunable_weights


class UnstructuredRandom(Criterion):
    """Random weights over the whole network, before training: the baseline of the weight criterions."""

    granularity = "weight"
    schedule = Before()

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Draw uniform scores in [0, 1) from the criterion's seed and step, in each weight's shape."""
        generator = self.generator()
        return {
            name: torch.rand(weight.shape, generator=generator).to(weight.device)
            for name, weight in prunable_weights(model).items()
        }
