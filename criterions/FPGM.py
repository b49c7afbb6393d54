import torch
from torch import Tensor

from secateur import After, ChannelWeightCriterion


class FPGM(ChannelWeightCriterion):
    """Sum of the distances of each filter to all filters of its layer; the lowest are nearest to the median.

    A channel's filter consists of the rows of all its producers, without biases. The same share of every layer is
    pruned. He, Liu, Wang, Hu and Yang, 2018, arXiv:1811.00250.
    """

    scope = "layer"
    schedule = After()
    paper = "arXiv:1811.00250"

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the sum of the L2 distances to all filters of the group."""
        rows = weight if weight.dtype == torch.float64 else weight.float()  # cdist does not support half precision
        # no matrix products: cancellation of large squares would lose the distances of close filters
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
