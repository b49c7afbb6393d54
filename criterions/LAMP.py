import torch
from torch import Tensor

from secateur import After, WeightCriterion
from secateur.framework.pruning.scoring.gradients import in_double


class LAMP(WeightCriterion):
    """Layer-adaptive magnitude: w^2 / sum of all v^2 of its layer with |v| >= |w|, after training.

    Among equal weights the first counts as the smaller one, so that all scores of a layer differ and the largest
    weight of every layer has score 1. Lee, Park, Mo, Ahn and Shin, 2020, arXiv:2010.07611.
    """

    schedule = After()
    paper = "arXiv:2010.07611"

    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """Return w^2 / sum of v^2 over |v| >= |w|, in [0, 1]; 0 for a weight of 0."""
        ascending, order = weight.flatten().abs().sort(stable=True)
        squares = in_double(ascending).square()
        from_here_on = squares.flip(0).cumsum(0).flip(0)
        scores = torch.where(squares > 0, squares / from_here_on, 0.0)
        return torch.empty_like(scores).scatter_(0, order, scores).reshape(weight.shape)
