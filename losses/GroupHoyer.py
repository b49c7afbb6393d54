from typing import Any

from secateur.framework.training.regularisers.regulariser import WHOLE, StructuralRegulariser
from secateur.framework.training.regularisers.structure import HOYER
from secateur.losses.CrossEntropy import CrossEntropy


class GroupHoyer(StructuralRegulariser, CrossEntropy):
    """Cross-entropy with the group Hoyer penalty: `decay` * sum over tensors of (G_n + G_c) / sqrt(sum w^2).

    G_n is the sum of the L2 norms of the whole filters w[n] and G_c of the whole input channels w[:, c] of a
    tensor of 2 or more dimensions; `groups` chooses fibres, or the channels of the network as a cut removes them.
    It does not depend on the scale of a tensor. A group of zeros has the subgradient 0, and a tensor of zeros
    the measure 0. The penalty ends with the first pruning step. It is from the code, not the paper, of Yang, Wen
    and Li, 2019, arXiv:1908.09979.
    """

    form = HOYER

    def __init__(self, *, decay: float = 1e-2, groups: str = WHOLE, **options: Any) -> None:
        super().__init__(decay=decay, groups=groups, **options)
