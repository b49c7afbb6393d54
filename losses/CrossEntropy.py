from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.loss import Loss
from utils.errors import UsageError


class CrossEntropy(Loss):
    """Cross-entropy of the logits, with optional label smoothing and l1 and lp penalties.

    The penalties run over all parameters, one norm per tensor: l1_reg * |w + 1e-8|_1 + lp_reg * |w + 1e-8|_0.2,
    as in the original; with p = 0.2 the second grows very large for large tensors, so lp_reg must be tiny.
    """

    def __init__(self, *, l1_reg: float = 0.0, lp_reg: float = 0.0, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"CrossEntropy: label_smoothing {label_smoothing} is outside [0, 1)")
        super().__init__(l1_reg=l1_reg, lp_reg=lp_reg, label_smoothing=label_smoothing)
        self.l1_reg, self.lp_reg, self.label_smoothing = l1_reg, lp_reg, label_smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch: outputs (batch, classes), targets (batch,)."""
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def penalty(self, model: nn.Module) -> Tensor:
        """The l1 and lp terms; zero where both are off."""
        total = super().penalty(model)
        for coefficient, p in ((self.l1_reg, 1.0), (self.lp_reg, 0.2)):
            if coefficient > 0:
                for parameter in self.penalised(model):
                    total = total + coefficient * torch.linalg.vector_norm(parameter + 1e-8, p)
        return total

    def penalised(self, model: nn.Module) -> list[nn.Parameter]:
        """What the l1 and lp terms run over: all parameters."""
        return list(model.parameters())
