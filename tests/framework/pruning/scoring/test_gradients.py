"""Gradients of the loss over batches, against brute force in float64."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import mean_gradients, scoring
from secateur.framework.pruning.scoring.gradients import each_gradient
from tests.networks import Net, randomise


def tied() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Two layers that share a weight, and two batches of different sizes."""
    layers = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
    layers["b"].weight = layers["a"].weight
    model = randomise(Net(lambda s, x: s.b(F.relu(s.a(x))), **layers)).double()
    inputs, targets = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3
    return model, list(zip(inputs.split((5, 3)), targets.split((5, 3)), strict=True))


def test_a_parameter_with_two_names_has_its_gradient_under_both() -> None:
    model, batches = tied()
    names = ("a.weight", "b.weight", "a.bias")
    parameters = {name: model.get_parameter(name) for name in names}
    assert parameters["a.weight"] is parameters["b.weight"]
    samples = [(x[None], y[None]) for inputs, targets in batches for x, y in zip(inputs, targets, strict=True)]
    loss = torch.stack([F.cross_entropy(model(x), y) for x, y in samples]).mean()
    expected = torch.autograd.grad(loss, [parameters[name] for name in names])
    with scoring(model):
        found, mean_loss = mean_gradients(model, batches, F.cross_entropy, parameters)
    torch.testing.assert_close(mean_loss, float(loss.detach()))
    for name, slope in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], slope)
        found[name].zero_()  # each may be modified in place
    with scoring(model):
        parts = [(size, dict(part)) for size, part in each_gradient(model, batches, F.cross_entropy, parameters)]
    assert [size for size, _ in parts] == [5, 3]
    for name, slope in zip(names, expected, strict=True):
        torch.testing.assert_close(sum(size * part[name] for size, part in parts) / 8, slope)
