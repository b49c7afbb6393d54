from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur import After, Batch, Data, Groups, LossFunction, Schedule
from secateur.framework.pruning.scoring.gates.gate_criterion import BatchMean
from secateur.framework.pruning.scoring.gates.gradients import output_products
from secateur.framework.pruning.scoring.gradients import Part


class TaylorOutput(BatchMean):
    """Mean of |a * dL/da| over samples and positions, divided by its L2 norm in the layer, averaged over batches.

    a is each channel's output after its norm; the products of several producers of one channel are summed before
    the absolute value. With `original` the absolute value is taken of each sample's mean over positions, as in
    Molchanov, Tyree, Karras, Aila and Kautz, 2016, arXiv:1611.06440. Eval mode. Method 6 of arXiv:1906.10771.
    """

    granularity = "channel"
    equal_batches: ClassVar[bool] = True
    schedule: ClassVar[Schedule] = After()
    data = Data("random", batches=30)
    paper = "arXiv:1611.06440"

    def __init__(self, *, original: bool = False) -> None:
        super().__init__(original=original)
        self.original = original

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and the normalised means."""
        for samples, products in output_products(model, batches, loss, groups, self._positions):
            means = {name: self._positions(values).abs().mean((1, 2)) for name, values in products.items()}
            yield samples, {name: mean / (torch.linalg.vector_norm(mean) + 1e-8) for name, mean in means.items()}

    def _positions(self, products: Tensor) -> Tensor:
        """Return the means over positions, `(channels, samples, 1)`."""
        return (products if self.original else products.abs()).mean(2, keepdim=True)
