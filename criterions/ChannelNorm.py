from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur import (
    After,
    Batch,
    Criterion,
    Groups,
    LossFunction,
    Schedule,
    Scores,
    UsageError,
    input_columns,
    with_groups,
)
from secateur.framework.pruning.scoring.channel_sums import producer_parameters, sum_of_powers


class ChannelNorm(Criterion):
    """Norm of each channel's weights (`p` 1 or 2), after training, followed by fine-tuning.

    The norm is taken over the rows of all producers of the channel, without biases. Li, Kadav, Durdanovic, Samet
    and Graf, 2016, arXiv:1608.08710.
    """

    granularity = "channel"
    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:1608.08710"

    def __init__(self, *, p: int = 1) -> None:
        if p not in (1, 2):
            raise UsageError(f"ChannelNorm: p must be 1 or 2, got {p}")
        super().__init__(p=p)
        self.p = p

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return (sum |w|^p)^(1/p) of every free channel, `(channels,)` per group."""
        free, _ = with_groups(model, batches, groups)
        weights = producer_parameters(model, free, biases=False)
        sums = sum_of_powers(free, weights, self.p)
        return {name: total.pow(1 / self.p).float() for name, total in sums.items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the norm of each column of the first layer's weight, `(inputs,)`."""
        module: Any = model.get_submodule(layer)
        return torch.linalg.vector_norm(input_columns(module, module.weight.detach()), self.p, dim=1).float()
