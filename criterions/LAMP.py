from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur import After, Batch, Criterion, Groups, LossFunction, Schedule, Scores, prunable_weights


class LAMP(Criterion):
    """Layer-adaptive magnitude: w^2 / sum of all v^2 of its layer with |v| >= |w|, after training.

    Among equal weights the first counts as the smaller one, so that all scores of a layer differ and the largest
    weight of every layer has score 1. Lee, Park, Mo, Ahn and Shin, 2020, arXiv:2010.07611.
    """

    granularity = "weight"
    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:2010.07611"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the layer-adaptive magnitude of every prunable weight, in [0, 1], in the weight's shape."""
        return {name: _lamp(weight.detach()) for name, weight in prunable_weights(model).items()}


def _lamp(weight: Tensor) -> Tensor:
    ascending, order = weight.flatten().abs().sort(stable=True)
    squares = ascending.to(torch.float32 if weight.is_mps else torch.float64).square()
    from_here_on = squares.flip(0).cumsum(0).flip(0)
    scores = torch.where(squares > 0, squares / from_here_on, 0.0)
    return torch.empty_like(scores).scatter_(0, order, scores).reshape(weight.shape).float()
