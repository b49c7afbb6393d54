"""The gradient of a gate on each channel, and the layers whose output does not tell it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_nets import ConvNet, Net, ResNet, images, randomise, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from framework.criterion import free_groups, mean_gradients, scoring
from framework.pruning.channels import channel_groups
from framework.pruning.gates import _heard, gate_gradients
from framework.pruning.producers import producer_parameters, sum_over_channels


def chain(run: Callable[[Net, Tensor], Tensor]) -> nn.Module:
    """Convolutions a, b and the output layer d, without norms."""
    return Net(run, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 5, 3), d=nn.Linear(5, 4))


def in_place(s: Net, x: Tensor) -> Tensor:
    return s.d(F.leaky_relu(s.b(F.leaky_relu_(s.a(x), 0.1)), 0.1).mean((2, 3)))


def called_without_its_module(s: Net, x: Tensor) -> Tensor:
    return s.d(F.conv2d(F.leaky_relu(s.a(x)), s.b.weight, s.b.bias).mean((2, 3)))


def called_both_ways(s: Net, x: Tensor) -> Tensor:
    x = F.leaky_relu(s.a(x))
    return s.d((s.b(x) + F.conv2d(x.square(), s.b.weight)).mean((2, 3)))


def called_twice(s: Net, x: Tensor) -> Tensor:
    x = F.leaky_relu(s.a(x))
    return s.d((s.b(x) + s.b(x.square())).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "heard"),
    [
        (ConvNet, {"a", "b", "c"}),
        (ResNet, {"stem", "a", "b", "c", "e", "skip"}),
        (lambda: chain(in_place), {"b"}),
        (lambda: chain(called_without_its_module), {"a"}),
        (lambda: chain(called_both_ways), {"a"}),
        (lambda: chain(called_twice), {"a", "b"}),
    ],
)
def test_a_gates_gradient_is_the_sum_of_weights_times_gradients(
    make: Callable[[], nn.Module], heard: set[str]
) -> None:
    model = randomise(seeded(make)).double()
    inputs, targets = images(8).double(), torch.arange(8) % 4
    batches = list(zip(inputs.split((5, 3)), targets.split((5, 3)), strict=True))
    groups = free_groups(channel_groups(model, inputs))
    parameters = producer_parameters(model, groups)
    with scoring(model):
        gradients, mean_loss = mean_gradients(model, batches, F.cross_entropy, parameters)
    expected = sum_over_channels(groups, parameters, gradients)
    with scoring(model):
        assert _heard(model, inputs[:1], parameters) <= {f"{name}.weight" for name in heard}
        found, same_loss = gate_gradients(model, batches, F.cross_entropy, groups)
    assert same_loss == mean_loss
    assert list(found) == list(expected) == list(groups)
    for name in groups:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    with scoring(model):
        assert _heard(model, inputs[:1], parameters) == {f"{name}.weight" for name in heard & _named(parameters)}
    assert not any(module._forward_hooks for module in model.modules())


def _named(parameters: dict[str, nn.Parameter]) -> set[str]:
    return {name.rpartition(".")[0] for name in parameters}
