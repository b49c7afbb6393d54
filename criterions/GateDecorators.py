from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur import (
    Batch,
    Criterion,
    Data,
    During,
    Groups,
    LossFunction,
    Schedule,
    Scores,
    input_columns,
    mean_gradients,
    prunable_weights,
    scoring,
    with_groups,
)
from secateur.framework.network.layers import tensor_name
from secateur.framework.pruning.scoring.gates.gradients import batch_gates


class GateDecorators(Criterion):
    """Sum over batches of |phi * dL/dphi| of a gate phi after each norm, with the trainer TickTock.

    The gate is that of TickTock, or the equivalent gate of an ordinary batch norm: y = scale * x_hat + shift =
    phi * (x_hat + shift / scale) has phi * dL/dphi = scale * dL/dscale + shift * dL/dshift, so that no gated
    network is needed. For a producer without a norm the gate is on its own output: sum w * dL/dw + b * dL/db. L is
    the mean loss of a batch; several producers of one channel are summed before the absolute value.
    You, Yan, Ye, Ma and Wang, 2019, arXiv:1909.08174.
    """

    granularity = "channel"
    schedule: ClassVar[Schedule] = During(even=True)
    data = Data("random", batches=5)
    paper = "arXiv:1909.08174"
    trainer: ClassVar[str] = "TickTock"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the sum over batches of |phi * dL/dphi| of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        totals: dict[str, Tensor] = {}
        with scoring(model):
            for _, gates in batch_gates(model, batches, loss, free, "next norm"):
                for name, gate in gates.items():
                    totals[name] = totals[name] + gate.abs() if name in totals else gate.abs()
        return {name: total.float() for name, total in totals.items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the sum over batches of |sum w * dL/dw| of each column of the first layer, `(inputs,)`."""
        name, module = tensor_name(layer, "weight"), model.get_submodule(layer)
        weight = prunable_weights(model)[name]
        columns = []
        with scoring(model):
            for batch in batches:
                gradients, _ = mean_gradients(model, [batch], loss, {name: weight})
                columns.append(input_columns(module, gradients[name] * weight.detach()).sum(1).abs())
                weight.grad = None
        return torch.stack(columns).sum(0).float()
