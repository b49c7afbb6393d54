from typing import Any

from secateur.framework.training.regularisers.regulariser import WHOLE, StructuralRegulariser
from secateur.framework.training.regularisers.structure import LASSO
from secateur.losses.CrossEntropy import CrossEntropy


class GroupLasso(StructuralRegulariser, CrossEntropy):
    """Cross-entropy with the group lasso: `decay` * sum over tensors of (G_n + G_c).

    G_n is the sum of the L2 norms of the whole filters w[n] and G_c of the whole input channels w[:, c] of a
    tensor of 2 or more dimensions; `groups` chooses fibres, or the channels of the network as a cut removes them.
    A group of zeros has the subgradient 0. The penalty ends with the first pruning step. Wen, Wu, Wang, Chen and
    Li, 2016, arXiv:1608.03665.
    """

    form = LASSO

    def __init__(self, *, decay: float = 1e-3, groups: str = WHOLE, **options: Any) -> None:
        super().__init__(decay=decay, groups=groups, **options)
