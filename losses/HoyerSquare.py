from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur import UsageError
from secateur.framework.network.lineage import was_pruned
from secateur.losses.CrossEntropy import CrossEntropy


class HoyerSquare(CrossEntropy):
    """Cross-entropy, and in training `hoyer_reg` * (sum |w|)^2 / sum w^2 of each tensor of 2 or more dimensions.

    The measure is between 1 (a single entry is left) and the size of the tensor (all equally large), whatever the
    scale of the weights. It ends with the first pruning: from then on what is left is only tuned. The original's
    weight of 1 makes it thousands of times the cross-entropy; here it is 1e-5. The l1, lp and smoothing options of
    CrossEntropy work along. Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    def __init__(
        self, *, hoyer_reg: float = 1e-5, l1_reg: float = 0.0, lp_reg: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        if not hoyer_reg >= 0:
            raise UsageError(f"{type(self).__name__}: hoyer_reg must be at least 0, got {hoyer_reg}")
        super().__init__(l1_reg=l1_reg, lp_reg=lp_reg, label_smoothing=label_smoothing)
        self.hoyer_reg = hoyer_reg

    def penalty(self, model: nn.Module) -> Tensor:
        """CrossEntropy's, and the measure as long as nothing was pruned; finite for tensors of zeros too."""
        total = super().penalty(model)
        if self.hoyer_reg > 0 and not was_pruned(model):
            for weight in model.parameters():
                if weight.dim() > 1 and weight.numel():
                    total = total + self.hoyer_reg * self.measure(weight / largest_entry(weight))
        return total

    def measure(self, weight: Tensor) -> Tensor:
        """Of a tensor of 2 or more dimensions whose largest entry is 1, or all zero; a scalar."""
        return weight.abs().sum().square() / weight.square().sum().clamp(min=1)


def largest_entry(weight: Tensor) -> Tensor:
    """A constant to divide by: neither the measure nor its gradient changes, but tiny squares would vanish."""
    largest = weight.detach().abs().amax()
    return torch.where(largest > 0, largest, torch.ones_like(largest))
