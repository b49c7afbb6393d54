from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from secateur import After, Batch, Criterion, Data, Groups, LossFunction, Schedule, Scores, scoring, with_groups
from secateur.framework.pruning.scoring.gates.gradients import output_products
from secateur.framework.pruning.scoring.gradients import mean_over_batches


class TaylorOutput(Criterion):
    """Mean of |a * dL/da| over samples and positions, divided by its L2 norm in the layer, averaged over batches.

    a is each channel's output after its norm; the products of several producers of one channel are summed before
    the absolute value. With `original` the absolute value is taken of each sample's mean over positions, as in
    Molchanov, Tyree, Karras, Aila and Kautz, 2016, arXiv:1611.06440. Eval mode. Method 6 of arXiv:1906.10771.
    """

    granularity = "channel"
    schedule: ClassVar[Schedule] = After()
    data = Data("random", batches=30)
    paper = "arXiv:1611.06440"

    def __init__(self, *, original: bool = False) -> None:
        super().__init__(original=original)
        self.original = original

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the mean over batches of the normalised mean of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        with scoring(model):
            products = output_products(model, batches, loss, free, self._early)
            parts = ((n, {name: self._layer(values) for name, values in part.items()}) for n, part in products)
            scores = mean_over_batches(parts)
        return {name: score.float() for name, score in scores.items()}

    def _early(self, products: torch.Tensor) -> torch.Tensor:
        """Return the means over positions, `(channels, samples, 1)`."""
        return (products if self.original else products.abs()).mean(2, keepdim=True)

    def _layer(self, products: torch.Tensor) -> torch.Tensor:
        """Return the normalised scores of a layer from products `(channels, samples, positions)`."""
        means = products.mean(2).abs().mean(1) if self.original else products.abs().mean((1, 2))
        return means / (torch.linalg.vector_norm(means) + 1e-8)
