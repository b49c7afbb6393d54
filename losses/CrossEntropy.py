from __future__ import annotations

from torch import Tensor, nn

from secateur import Loss, UsageError

#: the power of the lp penalty, and below which |w| its slope stops rising: at zero it would be infinite
POWER, NEAR_ZERO = 0.2, 1e-6


class CrossEntropy(Loss):
    """Cross-entropy of the logits, with optional label smoothing and l1 and lp penalties.

    l1_reg * sum |w| + lp_reg * sum |w|^0.2 over all parameters. The second has no root around the sum, so that it
    grows as the number of weights does and not as its fifth power. |w|^p is |w| * (|w| + 1e-6)^(p - 1): zero at
    zero, with a slope below 1e5 everywhere, and none at zero itself.
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
        if self.l1_reg > 0 or self.lp_reg > 0:
            for parameter in self.penalised(model):
                size = parameter.abs()
                if self.l1_reg > 0:
                    total = total + self.l1_reg * size.sum()
                if self.lp_reg > 0:
                    total = total + self.lp_reg * (size * (size + NEAR_ZERO) ** (POWER - 1)).sum()
        return total

    def penalised(self, model: nn.Module) -> list[nn.Parameter]:
        """What the l1 and lp terms run over: all parameters."""
        return list(model.parameters())
