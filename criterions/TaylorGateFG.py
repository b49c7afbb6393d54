from torch import Tensor

from secateur.criterions.TaylorGate import TaylorGate


class TaylorGateFG(TaylorGate):
    """Sum over samples of the squared per-sample gradients of the gates of TaylorGate, averaged over batches.

    The gradient of a sample is the sum over positions of a * dL/da, where a is the output that the gate
    multiplies. L is the mean loss of the batch, so that the scores decrease with the batch size. Full-gradient
    method 23 of Molchanov et al., 2019, arXiv:1906.10771.
    """

    per_sample = True

    def formula(self, gradient: Tensor) -> Tensor:
        """Return the sum over samples of the squared gradients."""
        return gradient.square().sum(0)
