from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

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
    channel_rows,
    input_columns,
    with_groups,
)


class GroupHoyerSquare(Criterion):
    """Largest |w| of each channel with a fixed `threshold`, once, after training with the loss of the same name.

    Channels whose weights, the rows of all producers, are at or below the threshold are pruned; the best channel
    of a group is kept. `--pruning_limit` has no effect, except that 0 prunes nothing. Yang, Wen and Li, 2019,
    arXiv:1908.09979.
    """

    granularity = "channel"
    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:1908.09979"

    def __init__(self, *, threshold: float = 1e-3) -> None:
        if not threshold >= 0:
            raise UsageError(f"GroupHoyerSquare: threshold must be at least 0, got {threshold}")
        super().__init__(threshold=threshold)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the largest |w| of every free channel, `(channels,)` per group."""
        free, _ = with_groups(model, batches, groups)
        return {name: rows.abs().amax(1).float() for name, rows in channel_rows(model, free).items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the largest |w| of each column of the first layer's weight, `(inputs,)`."""
        module: Any = model.get_submodule(layer)
        return input_columns(module, module.weight.detach()).abs().amax(1).float()
