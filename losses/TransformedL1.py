from typing import Any

from torch import Tensor

from secateur.framework.training.regularisers.measures import Measured, transformed_l1
from secateur.framework.training.regularisers.regulariser import Regulariser
from secateur.losses.CrossEntropy import CrossEntropy


class TransformedL1(Regulariser, CrossEntropy):
    """Cross-entropy with the transformed L1 penalty: `decay` * sum of 2 |w| / (1 + |w|) over tensors.

    The penalty includes all tensors of 2 or more dimensions and ends with the first pruning step. A weight adds at
    most 2, so that large weights shrink less than with L1; near zero the slope is 2. At 0 the subgradient is 0.
    Ma, Miao, Niu and Zhang, 2019, arXiv:1901.01021.
    """

    def __init__(self, *, decay: float = 1e-5, **options: Any) -> None:
        super().__init__(decay=decay, **options)

    def measure(self, weights: list[Tensor]) -> Measured:
        """Return the sum of the measure over tensors, with its gradients."""
        return transformed_l1(weights)
