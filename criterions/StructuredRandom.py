from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from framework.criterion import Batch, Criterion, Groups, LossFunction, Scores, with_groups
from framework.schedule import Before, Schedule


class StructuredRandom(Criterion):
    """Channels at random, the same share of every layer, before training: the control of the others."""

    granularity = "channel"
    scope = "layer"
    schedule: ClassVar[Schedule] = Before()

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Uniform in [0, 1), from the criterion's own seed and step, `(channels,)` per group."""
        free, _ = with_groups(model, batches, groups)
        generator = self.generator()
        return {name: torch.rand(group.channels, generator=generator) for name, group in free.items()}
