from typing import Any

from torch import Tensor

from secateur.framework.training.regularisers.measures import Measured, l1
from secateur.framework.training.regularisers.regulariser import Regulariser
from secateur.losses.CrossEntropy import CrossEntropy


class L1(Regulariser, CrossEntropy):
    """Cross-entropy with the L1 penalty: `decay` * sum |w| over tensors of 2 or more dimensions.

    At w = 0 the subgradient is 0. The penalty ends with the first pruning step.
    """

    def __init__(self, *, decay: float = 1e-5, **options: Any) -> None:
        super().__init__(decay=decay, **options)

    def measure(self, weights: list[Tensor]) -> Measured:
        """Return the sum of the measure over tensors, with its gradients."""
        return l1(weights)
