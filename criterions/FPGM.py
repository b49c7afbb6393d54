from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur import After, Batch, Criterion, Groups, LossFunction, Schedule, Scores, input_columns, with_groups
from secateur.framework.pruning.scoring.channel_sums import channel_rows


class FPGM(Criterion):
    """Sum of the distances of each filter to all filters of its layer: those nearest to the median go first.

    A channel's filter is the rows of all its producers, without biases. The same share of every layer goes. He,
    Liu, Wang, Hu and Yang, 2018, arXiv:1811.00250.
    """

    granularity = "channel"
    scope = "layer"
    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:1811.00250"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Sum of the L2 distances to all filters of the group, `(channels,)` per group."""
        free, _ = with_groups(model, batches, groups)
        return {name: _distances(rows) for name, rows in channel_rows(model, free).items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """The same sum over the columns of the first layer's weight, `(inputs,)`."""
        module: Any = model.get_submodule(layer)
        return _distances(input_columns(module, module.weight.detach()))


def _distances(rows: Tensor) -> Tensor:
    rows = rows if rows.dtype == torch.float64 else rows.float()  # half precision has no distances
    # not by matrix products: differences of large squares would drown the distances of filters that are close
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1).float()
