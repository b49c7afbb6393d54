from torch import Tensor

from secateur import Before, Data, Schedule, WeightCriterion


class SNIP(WeightCriterion):
    """Connection sensitivity |w * dL/dw| / |L|, once before training.

    The gradient is that of the mean loss over all scoring samples, in eval mode. Lee, Ajanthan and Torr,
    2018, arXiv:1810.02340.
    """

    schedule: Schedule = Before()
    data = Data("random", batches=5)
    paper = "arXiv:1810.02340"

    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """Return |w * g| / (1e-8 + |L|)."""
        return gradient.mul_(weight).abs_().div_(1e-8 + loss.abs())
