from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from secateur import Batch, Criterion, Groups, LossFunction, Never, Schedule, Scores, prunable_weights


class EmptyCrit(Criterion):
    """Prunes nothing: the dense baseline."""

    granularity = "weight"
    schedule: ClassVar[Schedule] = Never()
    recommended = {"outer_layer_pruning": False}

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return +inf for every prunable weight, which is never pruned."""
        return {
            name: torch.full_like(weight, torch.inf, dtype=torch.float32)
            for name, weight in prunable_weights(model).items()
        }
