from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction, Scores, input_columns, with_groups
from secateur.criterions.GRASP import GRASP
from secateur.framework.network.layers import tensor_name
from secateur.framework.pruning.scoring.channel_sums import producer_parameters, sum_over_channels


class StructuredGRASP(GRASP):
    """How the gradient flow changes with a gate on each channel, once before training.

    The sum of w * (H g) over the rows and biases of all producers of the channel, signed: the highest negative
    sum goes first. Options and paper as GRASP: Wang, Zhang and Grosse, 2020, arXiv:2002.07376.
    """

    granularity = "channel"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Sum of w * (H g) of every free channel, signed, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        products = self.flow().products(model, batches, loss, producer_parameters(model, free))
        sums = sum_over_channels(free, products, {name: torch.ones_like(one) for name, one in products.items()})
        return {name: (self._sign * total).float() for name, total in sums.items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """The same sum over the columns of the first layer's weight, `(inputs,)`."""
        products: Any = self.flow().products(model, batches, loss)[tensor_name(layer, "weight")]
        return (self._sign * input_columns(model.get_submodule(layer), products).sum(1)).float()
