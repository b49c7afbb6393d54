from torch import Tensor

from secateur import After, ChannelWeightCriterion, Data


class TaylorWeight(ChannelWeightCriterion):
    """Sum of (w * g)^2 over each channel's weights, averaged over batches; on a trained network.

    The weights are the rows of all producers, without biases. Eval mode. Method 0 of Molchanov, Mallya, Tyree,
    Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    schedule = After()
    data = Data("random", batches=30)
    per_batch = True
    paper = "arXiv:1906.10771"

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return sum (w * g)^2."""
        return gradient.mul_(weight).square_().sum(1)
