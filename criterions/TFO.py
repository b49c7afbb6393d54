from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from secateur import Batch, Groups, LossFunction, Scores, with_groups
from secateur.criterions.LossBased import LossBased
from secateur.framework.pruning.scoring.channel_sums import over_channels


class TFO(LossBased):
    """|sum w * g| over each channel's weights: the first-order Taylor term of the loss; during training.

    g and the options are those of LossBased. Lubana and Dick, 2020, arXiv:2009.11839, after Molchanov, Tyree,
    Karras, Aila and Kautz, 2016, arXiv:1611.06440.
    """

    #: the terms of the sum may cancel and are not scores of single weights
    element_scores = None  # type: ignore[assignment]

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return |sum w * g| of every free channel over all its producers, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        products = {name: g.mul_(w) for name, (w, g) in self.slopes(model, batches, loss, free).items()}
        return {name: total.abs().float() for name, total in over_channels(free, products).items()}
