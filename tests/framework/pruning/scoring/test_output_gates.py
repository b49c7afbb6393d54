"""The gradient of a gate on each channel, and the layers whose output does not tell it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.channel_sums import over_channels, producer_parameters
from secateur.framework.pruning.scoring.gates.gradients import gate_gradients, mean_gates
from secateur.framework.pruning.scoring.gates.sites import GateSites, Place
from secateur.framework.pruning.scoring.gradients import mean_gradients
from tests.networks import ConvNet, Net, ResNet, images, randomise, seeded


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
    ("make", "gated"),
    [
        (ConvNet, {"a", "b", "c"}),
        (ResNet, {"stem", "a", "b", "c", "e", "skip"}),
        (lambda: chain(in_place), {"a", "b"}),
        (lambda: chain(called_without_its_module), {"a"}),
        (lambda: chain(called_both_ways), {"a"}),
        (lambda: chain(called_twice), {"a", "b"}),
    ],
)
def test_a_gates_gradient_is_the_sum_of_weights_times_gradients(
    make: Callable[[], nn.Module], gated: set[str]
) -> None:
    model = randomise(seeded(make)).double()
    inputs, targets = images(8).double(), torch.arange(8) % 4
    batches = list(zip(inputs.split((5, 3)), targets.split((5, 3)), strict=True))
    groups = free_groups(channel_groups(model, inputs))
    parameters = producer_parameters(model, groups)
    with scoring(model):
        gradients, mean_loss = mean_gradients(model, batches, F.cross_entropy, parameters)
    products = {name: parameter.detach() * gradients[name] for name, parameter in parameters.items()}
    expected = over_channels(groups, products)
    with scoring(model):
        found, same_loss = mean_gates(model, batches, F.cross_entropy, groups, "producer")
    assert same_loss == pytest.approx(mean_loss, rel=1e-12)
    assert list(found) == list(expected) == list(groups)
    for name in groups:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    sites = GateSites.find(model, groups, inputs[:1], "producer")
    assert set(sites.outputs.values()) == gated & _named(parameters)
    assert sites.scaled.keys() == {name for name in parameters if name.rpartition(".")[0] not in gated}
    assert sites.copied == ({"a.weight"} if getattr(model, "run", None) is in_place else set())
    assert not any(module._forward_hooks for module in model.modules())


def upwards(groups: int) -> nn.Module:
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.ConvTranspose2d(8, 8, 2, 2, groups=groups), "d": nn.Linear(8, 4)}
    return Net(lambda s, x: s.d(s.b(s.a(x)).sigmoid().mean((2, 3))), **layers)


def table(kind: type[nn.Module]) -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        found = s.table((x[:, 0, 0] > 0).long())
        return s.d(s.b(found if found.dim() == 2 else found.mean(1)).sigmoid())

    return Net(run, table=kind(2, 6), b=nn.Linear(6, 5), d=nn.Linear(5, 4))


@pytest.mark.parametrize("place", ["producer", "norm", "next norm"])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: upwards(2), ["a", "b"]),
        (lambda: upwards(8), ["a"]),
        (lambda: table(nn.Embedding), ["table", "b"]),
        (lambda: table(nn.EmbeddingBag), ["table", "b"]),
    ],
)
def test_gates_of_tables_and_grouped_transposed_convolutions_are_what_small_steps_tell(
    make: Callable[[], nn.Module], names: list[str], place: Place
) -> None:
    model, inputs = randomise(seeded(make)).double().eval(), images(6).double()
    targets, step = torch.arange(6) % 4, 1e-5
    groups = free_groups(channel_groups(model, inputs))
    assert list(groups) == names
    with scoring(model):
        _, _, gates = next(gate_gradients(model, [(inputs, targets)], F.cross_entropy, groups, place))
    for name, group in groups.items():
        for channel in range(group.channels):
            losses = []
            for factor in (1 + step, 1 - step):
                twin = copy.deepcopy(model)
                with torch.no_grad():
                    for part in group.produced:
                        rows = twin.get_parameter(part.tensor).movedim(part.dim, 0)
                        rows[part.index[channel]] *= factor
                    losses.append(float(F.cross_entropy(twin(inputs), targets)))
            slope = (losses[0] - losses[1]) / (2 * step)
            assert float(gates[name][channel]) == pytest.approx(slope, rel=1e-4, abs=1e-8), (name, channel)


def _named(parameters: dict[str, nn.Parameter]) -> set[str]:
    return {name.rpartition(".")[0] for name in parameters}
