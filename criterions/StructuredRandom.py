from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur import Batch, Before, Criterion, Groups, LossFunction, Schedule, Scores, input_columns, with_groups


class StructuredRandom(Criterion):
    """Random channels, the same share of every layer, before training: the baseline of the channel criterions."""

    granularity = "channel"
    scope = "layer"
    schedule: Schedule = Before()

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Draw uniform scores in [0, 1) from the criterion's seed and step, `(channels,)` per group."""
        free, _ = with_groups(model, batches, groups)
        generator = self.generator()
        return {name: torch.rand(group.channels, generator=generator) for name, group in free.items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Draw uniform scores in [0, 1), independent of those of the channels, `(inputs,)`."""
        module: Any = model.get_submodule(layer)
        generator = torch.Generator().manual_seed(~self.generator().initial_seed() % 2**63)
        return torch.rand(len(input_columns(module, module.weight.detach())), generator=generator)
