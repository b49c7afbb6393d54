from typing import Any

import torch
from torch import Tensor, nn

from secateur import UsageError
from secateur.framework.network.lineage import was_pruned
from secateur.losses.CrossEntropy import CrossEntropy


class HoyerSquare(CrossEntropy):
    """Cross-entropy with the Hoyer-Square penalty: `hoyer_reg` * sum of (sum |w|)^2 / sum w^2 over tensors.

    The penalty includes all tensors of 2 or more dimensions. The measure is between 1 (a single nonzero entry) and
    the size of the tensor (entries of equal size), independent of the scale of the weights. It ends with the first
    pruning step; the remaining weights are fine-tuned without it. The original weight of 1 makes the penalty
    thousands of times the cross-entropy; the default is 1e-5. The l1, lp and smoothing options are those of
    CrossEntropy. Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    def __init__(self, *, hoyer_reg: float = 1e-5, **options: Any) -> None:
        if not hoyer_reg >= 0:
            raise UsageError(f"{type(self).__name__}: hoyer_reg must be at least 0, got {hoyer_reg}")
        super().__init__(**options)
        self.hoyer_reg = hoyer_reg

    def penalty(self, model: nn.Module) -> Tensor:
        """Return CrossEntropy's penalty, plus the measure until the first pruning; finite for zero tensors."""
        total = super().penalty(model)
        if self.hoyer_reg > 0 and not was_pruned(model):
            for weight in model.parameters():
                if weight.dim() > 1 and weight.numel():
                    total = total + self.hoyer_reg * self.measure(weight / largest_entry(weight))
        return total

    def measure(self, weight: Tensor) -> Tensor:
        """Return the measure, a scalar, of a tensor with largest entry 1 or of zeros, of 2 or more dimensions."""
        return weight.abs().sum().square() / weight.square().sum().clamp(min=1)


def largest_entry(weight: Tensor) -> Tensor:
    """Return the largest |w| as a constant, to normalise a tensor so that small squares do not underflow."""
    largest = weight.detach().abs().amax()
    return torch.where(largest > 0, largest, torch.ones_like(largest))
