from torch import Tensor

from secateur.criterions.LossBased import LossBased


class BiasedLossTracked(LossBased):
    """|w * g| weighted by |w| (`use_l2`), summed over each channel's weights; during training.

    Intended for tracking over the last batches of an epoch. Without tracking it equals BiasedLoss, and without
    `use_l2` LossBased. g and the other options are those of LossBased. Lubana and Dick, 2020, arXiv:2009.11839.
    """

    recommended = {
        "T": 5.0,
        "keep_share": {"rounds": 0.05},
        "track_importance": {"during": True, "after": True, "rounds": True},
        "use_l2": True,
        "use_init": False,
        "preserve_moment": True,
    }

    def __init__(self, *, use_l2: bool = True, temperature: float = 5.0, samples: int = 2560) -> None:
        super().__init__(temperature=temperature, samples=samples)
        self.use_l2 = use_l2

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return |w * g| * |w|, or |w * g|, of each weight."""
        sensitivity = super().formula(weight, gradient)
        return sensitivity.mul_(weight).abs_() if self.use_l2 else sensitivity
