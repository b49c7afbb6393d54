"""The gate behind a norm: found by running the network, its gradient against brute force in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.criterions.GateDecorators import GateDecorators
from secateur.framework.network.batch_norm import batch_norms_after
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.gated_layers.gated_batch_norm import add_gates
from tests.networks import ConvNet, Net, ResNet, images, mlp, randomise, seeded

Batches = list[tuple[Tensor, Tensor]]


def batches_of(x: Tensor, sizes: tuple[int, ...] = (5, 3)) -> Batches:
    return list(zip(x.split(sizes), (torch.arange(len(x)) % 4).split(sizes), strict=True))


class Gate(nn.Module):
    """What a channel is multiplied by."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.ones(channels, dtype=torch.float64))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x * self.phi.view([-1 if dim == self.axis else 1 for dim in range(x.dim())])


def by_hand(model: nn.Module, batches: Batches, gates: dict[str, list[tuple[str, int]]]) -> dict[str, Tensor]:
    """Sum over batches of |sum of dL/dphi|, with literal gates put behind the modules named."""
    totals = {}
    for name, places in gates.items():
        total = torch.zeros(())
        for x, y in batches:
            twin = copy.deepcopy(model).double().eval()
            found = []
            for place, axis in places:
                module = twin.get_submodule(place)
                channels = getattr(module, "num_features", None) or module.weight.shape[0]
                found.append(Gate(channels, axis))
                module.register_forward_hook(lambda _m, _a, out, gate=found[-1]: gate(out))
            loss = F.cross_entropy(twin(x.double()), y)
            gradients = torch.autograd.grad(loss, [gate.phi for gate in found])
            total = total + torch.stack(gradients).sum(0).abs()
        totals[name] = total
    return totals


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, list[tuple[str, int]]]]] = {
    "convolutions": (ConvNet, images(8), {"a": [("na", 1)], "b": [("nb", 1)], "c": [("nc", 1)]}),
    "residual": (
        ResNet,
        images(8),
        {"stem": [("n0", 1), ("nb", 1)], "a": [("na", 1)], "c": [("nc", 1)], "e": [("ne", 1), ("ns", 1)]},
    ),
    "without norms": (
        mlp,
        torch.randn(8, 12, generator=torch.Generator().manual_seed(0)),
        {"0": [("0", 1)], "2": [("2", 1)]},
    ),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("gated", [False, True])
def test_the_score_is_that_of_literal_gates_with_and_without_ticktock(net: str, gated: bool) -> None:
    make, x, gates = NETS[net]
    model, batches = randomise(seeded(make)), batches_of(x)
    expected = by_hand(model, batches, gates)
    if gated:
        add_gates(model, 1.0)
    found = GateDecorators().score(model, batches, F.cross_entropy)
    assert list(found) == list(expected)
    for name, score in found.items():
        torch.testing.assert_close(score.double(), expected[name], rtol=2e-4, atol=1e-6)


def test_it_is_the_gradient_of_the_trainers_own_gates() -> None:
    model = add_and_return(randomise(seeded(ConvNet)))
    (batch,) = batches_of(images(8), (8,))
    found = GateDecorators().score(model, [batch], F.cross_entropy)
    model.eval()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    for name, norm in (("a", model.na), ("b", model.nb), ("c", model.nc)):
        torch.testing.assert_close(found[name], (norm.gate * norm.gate.grad).abs(), rtol=1e-4, atol=1e-6)


def add_and_return(model: nn.Module) -> nn.Module:
    add_gates(model)
    return model


def test_opposite_gradients_of_two_batches_do_not_cancel() -> None:
    model = randomise(seeded(ConvNet))
    one, other = batches_of(images(8))
    both = GateDecorators().score(model, [one, other], F.cross_entropy)
    alone = [GateDecorators().score(model, [batch], F.cross_entropy) for batch in (one, other)]
    for name in both:
        torch.testing.assert_close(both[name], alone[0][name] + alone[1][name])


def test_an_activation_in_place_behind_the_norm_changes_nothing() -> None:
    def run(self: Net, x: Tensor) -> Tensor:
        return self.d(self.act(self.n(self.a(x))).mean((2, 3)))

    def make(inplace: bool) -> nn.Module:
        layers = {"a": nn.Conv2d(3, 4, 3), "n": nn.BatchNorm2d(4), "act": nn.ReLU(inplace), "d": nn.Linear(4, 5)}
        return randomise(Net(run, **layers))

    scores = [
        GateDecorators().score(seeded(lambda mode=mode: make(mode)), batches_of(images(8)), F.cross_entropy)
        for mode in (False, True)
    ]
    assert torch.equal(scores[0]["a"], scores[1]["a"]) and bool(scores[0]["a"].any())


def test_a_norm_is_only_behind_a_layer_whose_outputs_nothing_else_takes() -> None:
    def run(self: Net, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.n(y) + y  # taken twice
        return self.d(self.m(self.b(z)).mean((2, 3)))

    net = Net(
        run,
        a=nn.Conv2d(3, 4, 1),
        n=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 4, 1),
        m=nn.BatchNorm2d(4),
        d=nn.Linear(4, 5),
    )
    assert batch_norms_after(net, ["a", "b", "d"], lambda: net(images(1)), directly=True) == {"b": "m"}


def test_groups_that_are_given_are_those_that_are_scored() -> None:
    model, batches = randomise(seeded(ConvNet)), batches_of(images(8))
    groups = channel_groups(model, batches[0][0], protect=["b"])
    assert list(GateDecorators().score(model, batches, F.cross_entropy, groups)) == ["a", "c"]


@pytest.mark.parametrize("net", NETS)
def test_batches_whose_gradients_are_opposite_count_twice(net: str) -> None:
    """The sum over batches is one of absolute values: gradients g and -g score 2 |g|, and not 0."""
    make, x, gates = NETS[net]
    model = randomise(seeded(make)).double()
    one, other = (x.double(), torch.ones(len(x))), (x.double(), -torch.ones(len(x)))

    def signed(outputs: Tensor, signs: Tensor) -> Tensor:
        return (outputs.square().sum(1) * signs).mean()

    single = GateDecorators().score(model, [one], signed)
    both = GateDecorators().score(model, [one, other], signed)
    layer = next(iter(gates))
    single |= {"inputs": GateDecorators().input_scores(model, [one], signed, layer)}
    both |= {"inputs": GateDecorators().input_scores(model, [one, other], signed, layer)}
    for name, score in both.items():
        assert float(single[name].max()) > 0
        torch.testing.assert_close(score, 2 * single[name])
