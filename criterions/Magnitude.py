from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from secateur import After, Batch, Criterion, Groups, LossFunction, Schedule, Scores, prunable_weights


class Magnitude(Criterion):
    """Absolute value of each weight, after training, followed by fine-tuning.

    Han, Pool, Tran and Dally, 2015, arXiv:1506.02626.
    """

    granularity = "weight"
    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:1506.02626"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return |w| of every prunable weight, in the weight's shape."""
        return {name: weight.detach().abs().float() for name, weight in prunable_weights(model).items()}
