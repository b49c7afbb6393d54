from torch import Tensor

from secateur.criterions.OBD import OBD


class TaylorGateSO(OBD):
    """(-dL/dz + d2L/dz2 / 2)^2 of a gate z = 1 on each channel, averaged over batches; on a trained network.

    This is the second-order Taylor approximation of removing the channel, with the diagonal of the Hessian exact
    as in OBD. Joint gates are divided by their number of producers, as in TaylorGate. Method 11 of Molchanov,
    Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    def __init__(self, *, divisor: str = "n") -> None:
        super().__init__(divisor=divisor)

    def formula(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the squared second-order Taylor term."""
        return (second / 2 - first).square()
