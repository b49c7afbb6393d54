"""Formulas of activations: against explicit outputs and loops in float64, joint producers included."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import ActivationCriterion, Criterion, UsageError, build
from tests.networks import Net, ResNet, images, randomise, seeded

Batches = list[tuple[Tensor, Tensor]]
SIZES = (5, 3)


class Cubed(ActivationCriterion):
    """A formula that is no function of the product."""

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return activation**3 + 100 * gradient**2 - activation * gradient


class PositionsFirst(ActivationCriterion):
    equal_batches: ClassVar[bool] = True

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return (activation * gradient).sum(2, keepdim=True)

    def reduce(self, values: Tensor) -> Tensor:
        return values.square().sum((1, 2))


def chain() -> nn.Module:
    """Convolutions without and with a norm, the first changed in place later, and a linear layer."""
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 5, 3), "nb": nn.BatchNorm2d(5), "c": nn.Linear(5, 6)}
    return Net(
        lambda s, x: s.d(F.relu(s.c(F.relu_(s.nb(s.b(F.leaky_relu_(s.a(x), 0.1)))).mean((2, 3))))),
        **layers, d=nn.Linear(6, 4),
    )  # fmt: skip


def pooled() -> nn.Module:
    """The output of a convolution is added to that of a linear layer, which has one position."""
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Linear(3, 4), "d": nn.Linear(4, 4)}
    return Net(
        lambda s, x: s.d(F.silu(s.a(x) + s.b(x.mean((2, 3)))[:, :, None, None]).mean((2, 3))), **layers
    )  # fmt: skip


def twice() -> nn.Module:
    """A layer that is called twice."""
    layers = {"a": nn.Linear(8, 4), "d": nn.Linear(4, 4)}
    return Net(lambda s, x: s.d((s.a(x[:, 0]).sigmoid() * s.a(x[:, 1]).tanh()).mean(1)), **layers)


#: network -> group -> modules whose outputs are the activations of the group
NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, ...]]]] = {
    "chain": (chain, {"a": ("a",), "b": ("nb",), "c": ("c",)}),
    "residual": (ResNet, {"stem": ("n0", "nb"), "a": ("na",), "c": ("nc",), "e": ("ne", "ns")}),
    "pooled": (pooled, {"a": ("a", "b")}),
    "twice": (twice, {"a": ("a",)}),
}


def network(name: str) -> tuple[nn.Module, Batches]:
    x, y = images(8).double(), torch.arange(8) % 4
    batches = list(zip(x.split(SIZES), y.split(SIZES), strict=True))
    return randomise(seeded(NETS[name][0])).double().eval(), batches


def observed(model: nn.Module, places: tuple[str, ...], x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the outputs of modules and their gradients, `(samples, channels, positions)`, one per call."""
    outputs: list[Tensor] = []

    def note(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # may be modified in place

    hooks = [model.get_submodule(place).register_forward_hook(note) for place in places]
    slopes = torch.autograd.grad(F.cross_entropy(model(x), y), outputs)
    for hook in hooks:
        hook.remove()

    def flat(values: Tensor) -> Tensor:
        channels_last = values.dim() == 3  # a linear layer on a sequence
        return (
            (values.transpose(1, 2) if channels_last else values).detach().reshape(len(x), -1, _positions(values))
        )

    return [(flat(output), flat(slope)) for output, slope in zip(outputs, slopes, strict=True)]


def _positions(values: Tensor) -> int:
    return {2: 1, 3: values.shape[1]}.get(values.dim(), values[0, 0].numel())


def expected(criterion: Criterion, calls: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the scores of one group by loops over channels, samples and positions."""
    samples, channels, positions = max((a.shape for a, _ in calls), key=lambda shape: shape[2])
    scores = torch.zeros(channels, dtype=torch.float64)
    for channel in range(channels):
        for sample in range(samples):
            values = [0.0] * positions
            for activation, gradient in calls:
                pairs = list(
                    zip(activation[sample, channel].tolist(), gradient[sample, channel].tolist(), strict=True)
                )
                share = len(pairs) / positions
                for at in range(positions):
                    a, g = pairs[at if share == 1 else 0]
                    values[at] += share * (
                        a * g if isinstance(criterion, PositionsFirst) else a**3 + 100 * g**2 - a * g
                    )
            if isinstance(criterion, PositionsFirst):
                scores[channel] += sum(values) ** 2
            else:
                scores[channel] += sum(map(abs, values)) / (samples * positions)
    return scores


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", [Cubed, PositionsFirst])
def test_formulas_of_activations_and_gradients(net: str, kind: type[ActivationCriterion]) -> None:
    model, batches = network(net)
    criterion = kind()
    found = criterion.score(model, batches, F.cross_entropy)
    assert list(found) == list(NETS[net][1])
    for name, places in NETS[net][1].items():
        parts = [expected(criterion, observed(model, places, x, y)) for x, y in batches]
        weights = (1, 1) if criterion.equal_batches else SIZES
        mean = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)
        assert isinstance(mean, Tensor) and bool((mean > 0).any())
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-5, atol=1e-12)


class Shapes(ActivationCriterion):
    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        self.__dict__.setdefault("seen", []).append((tuple(activation.shape), tuple(gradient.shape)))
        return activation


def test_a_formula_gets_channels_samples_positions_of_one_layer() -> None:
    model, batches = network("residual")
    criterion = Shapes()
    criterion.score(model, batches[:1], F.cross_entropy)
    stage, smaller = (6, 5, 64), (9, 5, 16)
    shapes = sorted([stage, stage, (5, 5, 64), (7, 5, 16), smaller, smaller])
    assert sorted(criterion.seen) == [(shape, shape) for shape in shapes]  # type: ignore[attr-defined]


def test_outputs_without_influence_on_the_loss_have_values_of_zero() -> None:
    layers = {"a": nn.Linear(8, 4), "b": nn.Linear(8, 4), "d": nn.Linear(4, 4)}
    model = randomise(Net(lambda s, x: s.d(s.a(x[:, 0, 0]) + s.b(x[:, 1, 0]).detach()), **layers))
    x, y = images(5), torch.arange(5) % 4
    found = Cubed().score(model, [(x, y)], F.cross_entropy)
    assert list(found) == ["a"] and bool((found["a"] > 0).all())
    model.run = lambda s, x: s.d(F.relu(s.a(x[:, 0, 0])).detach())  # type: ignore[assignment]
    with pytest.raises(UsageError, match="there is no gradient"):
        Cubed().score(model, [(x, y)], F.cross_entropy)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("net", ["chain", "residual"])
def test_taylor_output_in_bfloat16(net: str, original: bool) -> None:
    model, batches = network(net)
    criterion = build("criterions", "TaylorOutput", original=original)
    exact = criterion.score(model, batches, F.cross_entropy)
    half = [(x.bfloat16(), y) for x, y in batches]
    found = criterion.score(model.bfloat16(), half, F.cross_entropy)
    for name, scores in exact.items():
        assert found[name].dtype == torch.float32
        # 8 bits of mantissa: a relative error of 2^-9 in each of the passes' operations
        torch.testing.assert_close(found[name], scores, rtol=0, atol=0.05 * float(scores.norm()))
