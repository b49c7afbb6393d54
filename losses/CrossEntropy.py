from torch import Tensor, nn

from secateur import Loss, UsageError

#: exponent of the lp penalty, and the offset of |w| that bounds its gradient, which is infinite at zero
POWER, NEAR_ZERO = 0.2, 1e-6


class CrossEntropy(Loss):
    """Cross-entropy of the logits, with optional label smoothing and l1 and lp penalties.

    The penalties are l1_reg * sum |w| + lp_reg * sum |w|^0.2 over all parameters. The second is not the lp norm:
    without the root of the sum it grows linearly with the number of weights instead of with its fifth power. |w|^p
    is approximated by |w| * (|w| + 1e-6)^(p - 1), which is zero at zero with gradient zero, and whose gradient is
    below 1e5 everywhere.
    """

    def __init__(self, *, l1_reg: float = 0.0, lp_reg: float = 0.0, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"CrossEntropy: label_smoothing must be in [0, 1), got {label_smoothing}")
        super().__init__(l1_reg=l1_reg, lp_reg=lp_reg, label_smoothing=label_smoothing)
        self.l1_reg, self.lp_reg, self.label_smoothing = l1_reg, lp_reg, label_smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch, for outputs `(batch, classes)` and targets `(batch,)`."""
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the l1 and lp terms; zero if both are off."""
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
        """Return the parameters of the l1 and lp terms: all parameters."""
        return list(model.parameters())
