from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores
from secateur.framework.schedules.base import Never, Schedule


class EmptyCrit(Criterion):
    """Prunes nothing: the dense baseline."""

    granularity = "weight"
    schedule: ClassVar[Schedule] = Never()

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """+inf everywhere, which is never pruned."""
        return {
            name: torch.full_like(weight, torch.inf, dtype=torch.float32)
            for name, weight in prunable_weights(model).items()
        }
