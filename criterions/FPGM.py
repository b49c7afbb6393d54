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
    channel_rows,
    input_columns,
    with_groups,
)


class FPGM(Criterion):
    """Sum of the distances of each filter to all filters of its layer; the lowest are nearest to the median.

    A channel's filter consists of the rows of all its producers, without biases. The same share of every layer is
    pruned. He,
    Liu, Wang, Hu and Yang, 2018, arXiv:1811.00250.
    """

    granularity = "channel"
    scope = "layer"
    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:1811.00250"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the sum of the L2 distances to all filters of the group, `(channels,)` per group."""
        free, _ = with_groups(model, batches, groups)
        return {name: _distances(rows) for name, rows in channel_rows(model, free).items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the sum of the L2 distances between the columns of the first layer's weight, `(inputs,)`."""
        module: Any = model.get_submodule(layer)
        return _distances(input_columns(module, module.weight.detach()))


def _distances(rows: Tensor) -> Tensor:
    rows = rows if rows.dtype == torch.float64 else rows.float()  # cdist does not support half precision
    # no matrix products: cancellation of large squares would lose the distances of close filters
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1).float()
