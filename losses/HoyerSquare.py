from typing import Any

from torch import Tensor

from secateur.framework.training.regularisers.measures import Measured, hoyer
from secateur.framework.training.regularisers.regulariser import Regulariser, checked_weight
from secateur.losses.CrossEntropy import CrossEntropy


class HoyerSquare(Regulariser, CrossEntropy):
    """Cross-entropy with the Hoyer-Square penalty: `decay` * sum of (sum |w|)^2 / sum w^2 over tensors.

    The penalty includes all tensors of 2 or more dimensions. The measure is between 1 (a single nonzero entry) and
    the size of the tensor (entries of equal size), independent of the scale of the weights; weights with |w| below
    sum w^2 / sum |w| shrink. A tensor of zeros has measure and subgradient 0. It ends with the first pruning step;
    the remaining weights are fine-tuned without it. The original weight of 1 makes the penalty thousands of times
    the cross-entropy; the default is 1e-5. `hoyer_reg` is the weight unless `decay` is given. The l1, lp and
    smoothing options are those of CrossEntropy. Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    def __init__(self, *, decay: float | None = None, hoyer_reg: float = 1e-5, **options: Any) -> None:
        self.hoyer_reg = checked_weight(self, "hoyer_reg", hoyer_reg)
        super().__init__(decay=hoyer_reg if decay is None else decay, **options)

    def measure(self, weights: list[Tensor]) -> Measured:
        """Return the sum of the measure over tensors, with its gradients."""
        return hoyer(weights, power=2)
