from torch import Tensor

from secateur import After, CurvatureCriterion, Data


class OBD(CurvatureCriterion):
    """Signed d2L/dz2 of a gate z = 1 on each channel after its norm, averaged over batches; after training.

    The score is twice the saliency of optimal brain damage, z^2 d2L/dz2 / 2. It is exact: for piecewise linear
    networks it is computed from the gradients of all outputs, with one backward pass per output, and for the joint
    gates of residual stages with one pass per channel through the stage; otherwise with one pass per channel. Eval
    mode. LeCun, Denker and Solla, 1989; method 10 of arXiv:1906.10771.
    """

    equal_batches = True
    schedule = After()
    data = Data("random", batches=30)
    paper = "arXiv:1906.10771"

    def formula(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the second derivative."""
        return second
