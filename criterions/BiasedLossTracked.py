from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from secateur import Batch, Groups, LossFunction, Scores, with_groups
from secateur.criterions.LossBased import LossBased
from secateur.framework.pruning.scoring.channel_sums import over_channels, producer_parameters


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
        self._options = {"use_l2": use_l2} | self._options
        self.use_l2 = use_l2

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the sum of |w * g| * |w|, or of |w * g|, of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        elements = self.element_scores(model, batches, loss, free)
        if self.use_l2:
            weights = producer_parameters(model, free, biases=False)
            elements = {name: score.mul_(weights[name].detach()).abs_() for name, score in elements.items()}
        return {name: total.float() for name, total in over_channels(free, elements).items()}
