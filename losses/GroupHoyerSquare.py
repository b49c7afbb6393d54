from typing import Any

from secateur.framework.training.regularisers.regulariser import WHOLE, StructuralRegulariser, checked_weight
from secateur.framework.training.regularisers.structure import HOYER_SQUARE
from secateur.losses.CrossEntropy import CrossEntropy


class GroupHoyerSquare(StructuralRegulariser, CrossEntropy):
    """Group Hoyer-Square: HoyerSquare of the L2 norms of whole filters and input channels.

    The penalty is `decay` * sum of [(sum of norms of w[i])^2 + (sum of norms of w[:, j])^2] / sum w^2 over all
    tensors of 2 or more dimensions, until the first pruning step; `groups` chooses fibres, or the channels of the
    network as a cut removes them. A group of zeros has the subgradient 0, and a tensor of zeros the measure 0.
    Since it counts groups instead of entries, its gradient for a single weight is about a thousandth of
    HoyerSquare's at the same weight, hence the larger default. `hoyer_reg` is the weight unless `decay` is given.
    Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    form = HOYER_SQUARE

    def __init__(
        self, *, decay: float | None = None, hoyer_reg: float = 0.1, groups: str = WHOLE, **options: Any
    ) -> None:
        self.hoyer_reg = checked_weight(self, "hoyer_reg", hoyer_reg)
        super().__init__(decay=hoyer_reg if decay is None else decay, groups=groups, **options)
