from typing import Any

import torch
from torch import Tensor

from secateur.losses.HoyerSquare import HoyerSquare


class GroupHoyerSquare(HoyerSquare):
    """Group Hoyer-Square: HoyerSquare of the L2 norms of whole filters and input channels.

    The penalty is `hoyer_reg` * sum of [(sum of norms of w[i])^2 + (sum of norms of w[:, j])^2] / sum w^2 over all
    tensors of 2 or more dimensions, until the first pruning step. Since it counts groups instead of entries, its
    gradient for a single weight is about a thousandth of HoyerSquare's at the same `hoyer_reg`, hence the larger
    default. Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    def __init__(self, *, hoyer_reg: float = 0.1, **options: Any) -> None:
        super().__init__(hoyer_reg=hoyer_reg, **options)

    def measure(self, weight: Tensor) -> Tensor:
        """Return the measure, a scalar, of a tensor with largest entry 1 or of zeros, of 2 or more dimensions."""
        rows = torch.linalg.vector_norm(weight.flatten(1), dim=1).sum()
        columns = torch.linalg.vector_norm(weight.transpose(0, 1).flatten(1), dim=1).sum()
        return (rows.square() + columns.square()) / weight.square().sum().clamp(min=1)
