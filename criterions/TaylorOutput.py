import torch
from torch import Tensor

from secateur import ActivationCriterion, After, Data


class TaylorOutput(ActivationCriterion):
    """Mean of |a * dL/da| over samples and positions, divided by its L2 norm in the layer, averaged over batches.

    a is each channel's output after its norm; the products of several producers of one channel are summed before
    the absolute value. With `original` the absolute value is taken of each sample's mean over positions, as in
    Molchanov, Tyree, Karras, Aila and Kautz, 2016, arXiv:1611.06440. Eval mode. Method 6 of arXiv:1906.10771.
    """

    equal_batches = True
    schedule = After()
    data = Data("random", batches=30)
    paper = "arXiv:1611.06440"

    def __init__(self, *, original: bool = False) -> None:
        super().__init__(original=original)
        self.original = original

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return a * dL/da."""
        return activation * gradient

    def reduce(self, values: Tensor) -> Tensor:
        """Return the mean of |values|, or of |mean over positions|, divided by its L2 norm."""
        means = super().reduce(values.mean(2, keepdim=True) if self.original else values)
        return means / (torch.linalg.vector_norm(means) + 1e-8)
