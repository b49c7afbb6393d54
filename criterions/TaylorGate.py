from torch import Tensor

from secateur import After, Data, GateCriterion


class TaylorGate(GateCriterion):
    """(dL/dz)^2 of a gate z = 1 on each channel after its norm, averaged over batches; on a trained network.

    dL/dz is scale * g + shift * g of the batch norm that follows the producer, or sum w * g + b * g without one.
    The contributions of n producers (a residual stage) are summed, squared, and divided by n (`divisor` "n"), n *
    n ("n2", the squared mean gradient) or 1 ("none"). Eval mode. Taylor-FO-BN (method 22) of Molchanov,
    Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    equal_batches = True
    schedule = After()
    data = Data("random", batches=30)
    paper = "arXiv:1906.10771"

    def __init__(self, *, divisor: str = "n") -> None:
        super().__init__(divisor=divisor)

    def formula(self, gradient: Tensor) -> Tensor:
        """Return the squared gradient."""
        return gradient.square()
