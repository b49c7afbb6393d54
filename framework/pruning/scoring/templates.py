"""Base classes of criterions whose scores follow from a formula of weights and gradients.

They compute the gradients, apply the formula to every layer or channel group, and return the scores by name, as
`Criterion.score` requires, so that a criterion consists of its paper's formula.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights, tensor_name
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import producer_parameters, rows_of
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, Scores
from secateur.framework.pruning.scoring.gradients import Part, each_gradient, mean_gradients, mean_of, softened
from secateur.framework.pruning.scoring.input_features import input_columns
from secateur.framework.pruning.scoring.inputs import with_groups

#: the rows of each scored unit, by name, from tensors of the weights' shapes
Rows = Callable[[Mapping[str, Tensor]], Iterator[tuple[str, Tensor]]]


class WeightCriterion(Criterion):
    """Base class of criterions that score each weight by a formula of it, its gradient and the loss.

    A subclass implements `formula`. With `Data("none")`, the default, no gradient is computed: `gradient` and
    `loss` are NaN, and scores that depend on them are rejected.

    Args:
        **options: As of `Criterion`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import Data, WeightCriterion
        >>> class Sensitivity(WeightCriterion):
        ...     data = Data("random", batches=5)
        ...
        ...     def formula(self, weight, gradient, loss):
        ...         return (weight * gradient).abs() / loss
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.ones_(model[0].weight)
        >>> batches = [(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1))]
        >>> Sensitivity().score(model, batches, nn.functional.mse_loss)
        {'0.weight': tensor([[0.5000, 1.5000]])}
    """

    granularity = "weight"

    @abstractmethod
    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """Compute the scores of one layer's weight.

        Args:
            weight: The weight, in its own shape; it must not be modified.
            gradient: The gradient of the mean loss over all samples with respect to the weight, in eval mode, in
                the weight's shape. It may be modified in place, which saves memory.
            loss: The mean loss over all samples, a scalar in float64.

        Returns:
            The scores, in the weight's shape; the lowest are pruned first.
        """

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the scores of all prunable weights by `formula`, in the weights' shapes."""
        weights, mean_loss = prunable_weights(model), torch.nan
        gradients = {name: _undefined(weight) for name, weight in weights.items()}
        if self.data.kind != "none":
            with scoring(model):
                gradients, mean_loss = mean_gradients(model, batches, loss, weights)
        scalar = torch.tensor(mean_loss, dtype=torch.float64)
        return {
            name: self.formula(weight.detach(), gradients.pop(name), scalar).float()
            for name, weight in weights.items()
        }


class ChannelWeightCriterion(Criterion):
    """Base class of criterions that score each channel by a formula of its weights and their gradients.

    The weights of a channel are the rows of all its producers, without biases. A subclass implements `formula`;
    with `--outer_layer_pruning` the network's inputs are scored by the same formula from the columns of the first
    layer's weight. With `Data("none")`, the default, no gradient is computed: `gradient` is NaN, and scores that
    depend on it are rejected.

    Args:
        **options: As of `Criterion`. An option `temperature` divides the outputs before the loss.

    Attributes:
        per_batch: True if the formula is applied to the gradient of each batch, and the scores are averaged over
            batches with equal weights. False (default): it is applied once, to the gradient of the mean loss over
            all samples.
        temperature: Divisor of the outputs; 1 by default.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import ChannelWeightCriterion
        >>> class Largest(ChannelWeightCriterion):
        ...     def formula(self, weight, gradient):
        ...         return weight.abs().amax(1)
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[-3.0, 2.0], [0.0, 1.0]]))
        >>> Largest().score(model, [(torch.zeros(1, 2), torch.tensor([0]))], nn.functional.cross_entropy)
        {'0': tensor([3., 1.])}
    """

    granularity = "channel"
    per_batch: ClassVar[bool] = False
    temperature: float = 1.0

    @abstractmethod
    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Compute the scores of the channels of one group.

        Args:
            weight: The weights of each channel, `(channels, n)`; they must not be modified.
            gradient: The gradient of the mean loss with respect to them, in eval mode, `(channels, n)`. It may be
                modified in place.

        Returns:
            The scores, `(channels,)`; the lowest are pruned first.
        """

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the scores of all free channels by `formula`, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        weights = producer_parameters(model, free, biases=False)
        # one group at a time: rows of several producers are copies
        return self._scores(
            model, batches, loss, weights, lambda tensors: ((n, rows_of(g, tensors)) for n, g in free.items())
        )

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the scores of the columns of the layer's weight by `formula`, `(inputs,)`."""
        module, name = model.get_submodule(layer), tensor_name(layer, "weight")
        weights = {name: prunable_weights(model)[name]}
        return self._scores(
            model, batches, loss, weights, lambda tensors: iter([(layer, input_columns(module, tensors[name]))])
        )[layer]

    def _scores(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        loss: LossFunction,
        weights: Mapping[str, nn.Parameter],
        rows: Rows,
    ) -> dict[str, Tensor]:
        values = {name: weight.detach() for name, weight in weights.items()}
        if self.data.kind == "none":
            return {name: self.formula(row, _undefined(row)).float() for name, row in rows(values)}
        soft = softened(loss, self.temperature)

        def parts() -> Iterator[Part]:
            if self.per_batch:
                gradients = each_gradient(model, batches, soft, weights)
            else:
                gradients = iter([(1, mean_gradients(model, batches, soft, weights)[0])])
            for size, each in gradients:
                pairs = zip(rows(values), rows(each), strict=True)
                yield size, {name: self.formula(row, slope) for (name, row), (_, slope) in pairs}

        with scoring(model):
            return {name: score.float() for name, score in mean_of(parts(), equal=True).items()}


def _undefined(values: Tensor) -> Tensor:
    """Return NaN in the shape of `values`, without memory of that size."""
    return values.new_full((), torch.nan).expand_as(values)
