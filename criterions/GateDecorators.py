from collections.abc import Iterable

import torch
from torch import Tensor, nn

from secateur import Batch, Criterion, Data, During, Groups, LossFunction, Scores, scoring, with_groups
from secateur.framework.pruning.scoring.gates.gradients import gate_gradients
from secateur.framework.pruning.scoring.input_features import input_gates


class GateDecorators(Criterion):
    """Sum over batches of |phi * dL/dphi| of a gate phi after each norm, with the trainer TickTock.

    The gate is that of TickTock, or the equivalent gate of an ordinary batch norm: y = scale * x_hat + shift =
    phi * (x_hat + shift / scale) has phi * dL/dphi = scale * dL/dscale + shift * dL/dshift, so that no gated
    network is needed. For a producer without a norm the gate is on its own output: sum w * dL/dw + b * dL/db. L is
    the mean loss of a batch; several producers of one channel are summed before the absolute value.
    You, Yan, Ye, Ma and Wang, 2019, arXiv:1909.08174.
    """

    granularity = "channel"
    schedule = During(even=True)
    data = Data("random", batches=5)
    paper = "arXiv:1909.08174"
    trainer = "TickTock"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the sum over batches of |phi * dL/dphi| of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        totals: dict[str, Tensor] = {}
        with scoring(model):
            for _, _, gates in gate_gradients(model, batches, loss, free, "next norm"):
                for name, gate in gates.items():
                    totals[name] = totals[name] + gate.abs() if name in totals else gate.abs()
        return {name: total.float() for name, total in totals.items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the sum over batches of |sum w * dL/dw| of each column of the first layer, `(inputs,)`."""
        gates = [input_gates(model, [batch], loss, layer)[0] for batch in batches]
        return torch.stack(gates).abs().sum(0).float()
