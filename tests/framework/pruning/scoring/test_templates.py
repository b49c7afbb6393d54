"""The base classes of criterions that are a formula, against brute force in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import (
    ChannelWeightCriterion,
    Criterion,
    Data,
    WeightCriterion,
    channel_groups,
    prunable_weights,
)
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import check_scores
from secateur.utils.errors import UsageError
from tests.networks import Net, randomise

Batches = list[tuple[Tensor, Tensor]]


class Product(WeightCriterion):
    data = Data("random", batches=2)

    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        return gradient.mul_(weight) / loss


class ChannelProduct(ChannelWeightCriterion):
    data = Data("random", batches=2)

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient.mul_(weight).square_().amax(1)


class EachBatch(ChannelProduct):
    per_batch = True


def residual() -> tuple[nn.Module, Batches]:
    """Layers `a` and `b`, whose outputs are added, and the output layer; two batches of different sizes."""
    layers = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 3)}
    model = Net(lambda s, x: s.c(F.relu(F.relu(s.a(x)) + s.b(F.relu(s.a(x))))), **layers)
    randomise(model).double()
    inputs, targets = torch.randn(8, 5, dtype=torch.float64), torch.arange(8) % 3
    return model, list(zip(inputs.split((5, 3)), targets.split((5, 3)), strict=True))


def gradients(model: nn.Module, batches: Batches, temperature: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of the mean loss over all samples, one sample at a time, and that loss."""
    weights = prunable_weights(model)
    samples = [(x[None], y[None]) for inputs, targets in batches for x, y in zip(inputs, targets, strict=True)]
    loss = torch.stack([F.cross_entropy(model(x) / temperature, y) for x, y in samples]).mean()
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)), loss


def test_a_weight_criterion_gets_the_mean_gradient_and_the_mean_loss() -> None:
    model, batches = residual()
    scores = Product().score(model, batches, F.cross_entropy)
    expected, loss = gradients(model, batches)
    assert list(scores) == ["a.weight", "b.weight", "c.weight"]
    for name, weight in prunable_weights(model).items():
        torch.testing.assert_close(scores[name], (weight * expected[name] / loss).float())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("kind", [ChannelProduct, EachBatch])
def test_a_channel_criterion_gets_the_rows_of_all_producers(kind: type[Criterion], temperature: float) -> None:
    model, batches = residual()
    scores = kind(temperature=temperature).score(model, batches, F.cross_entropy)
    groups = free_groups(channel_groups(model, batches[0][0]))
    assert {len(group.producers) for group in groups.values()} == {2} and list(scores) == list(groups) == ["a"]
    given = [[batch] for batch in batches] if kind is EachBatch else [batches]
    expected = torch.zeros(4, dtype=torch.float64)
    for part in given:
        slopes, _ = gradients(model, part, temperature)
        products = [model.get_parameter(name).detach() * slopes[name] for name in ("a.weight", "b.weight")]
        for channel in range(4):
            entries = [float(entry) ** 2 for product in products for entry in product[channel]]
            expected[channel] += max(entries) / len(given)
    torch.testing.assert_close(scores["a"], expected.float())


def test_the_inputs_are_scored_by_the_columns_of_the_first_layer() -> None:
    model, batches = residual()
    scores = ChannelProduct().input_scores(model, batches, F.cross_entropy, "a")
    slopes, _ = gradients(model, batches)
    expected = (model.get_parameter("a.weight") * slopes["a.weight"]).square().amax(0)
    torch.testing.assert_close(scores, expected.detach().float())


class WithoutData(WeightCriterion):
    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        return weight * gradient


class ChannelWithoutData(ChannelWeightCriterion):
    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).sum(1)


@pytest.mark.parametrize("kind", [WithoutData, ChannelWithoutData])
def test_a_formula_cannot_use_a_gradient_without_data(kind: type[Criterion]) -> None:
    model, batches = residual()
    criterion, groups = kind(), channel_groups(model, batches[0][0])
    scores = criterion.score(model, [], F.cross_entropy, groups)
    with pytest.raises(UsageError, match="contains NaN"):
        check_scores(scores, model, groups, criterion)
