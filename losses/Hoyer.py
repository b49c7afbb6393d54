from typing import Any

from torch import Tensor

from secateur.framework.training.regularisers.measures import Measured, hoyer
from secateur.framework.training.regularisers.regulariser import Regulariser
from secateur.losses.CrossEntropy import CrossEntropy


class Hoyer(Regulariser, CrossEntropy):
    """Cross-entropy with the Hoyer penalty: `decay` * sum over tensors of sum |w| / sqrt(sum w^2).

    The penalty includes all tensors of 2 or more dimensions and ends with the first pruning step. The measure of a
    tensor with n entries is between 1 (one entry is not 0) and sqrt(n) (all are of equal size), whatever their
    scale. A tensor of zeros has measure and subgradient 0. Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    def __init__(self, *, decay: float = 1e-3, **options: Any) -> None:
        super().__init__(decay=decay, **options)

    def measure(self, weights: list[Tensor]) -> Measured:
        """Return the sum of the measure over tensors, with its gradients."""
        return hoyer(weights)
