from torch import Tensor

from secateur import After, Schedule, WeightCriterion


class Magnitude(WeightCriterion):
    """Absolute value of each weight, after training, followed by fine-tuning.

    Han, Pool, Tran and Dally, 2015, arXiv:1506.02626.
    """

    schedule: Schedule = After()
    paper = "arXiv:1506.02626"

    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """Return |w|."""
        return weight.abs()
