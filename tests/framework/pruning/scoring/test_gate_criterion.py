"""Formulas of one's own on gates: their derivatives against literal gates in float64, joint producers included."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap
from torch.nn import functional as F

from secateur import CurvatureCriterion, GateCriterion
from tests.networks import ResNet, images, randomise, seeded

#: norms whose outputs share a gate, by group of ResNet
PLACES = {"stem": ("n0", "nb"), "a": ("na",), "c": ("nc",), "e": ("ne", "ns")}
SIZES = (5, 3)


class Cubed(GateCriterion):
    def formula(self, gradient: Tensor) -> Tensor:
        return gradient**3


class CubedSamples(GateCriterion):
    per_sample: ClassVar[bool] = True

    def formula(self, gradient: Tensor) -> Tensor:
        return (gradient**3).sum(0)


class Mixed(CurvatureCriterion):
    def formula(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second + second**2


def network() -> nn.Module:
    return randomise(seeded(ResNet)).double().eval()


def loss_of(model: nn.Module, name: str, gate: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss with the gate as a factor of the scales and shifts of the norms."""
    norms = {
        f"{place}.{key}": getattr(model.get_submodule(place), key).detach() * gate
        for place in PLACES[name]
        for key in ("weight", "bias")
    }
    return F.cross_entropy(functional_call(model, norms, (x,)), y)


def derivatives(model: nn.Module, name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return dL/dz of the batch and of each sample, and d2L/dz2 of the batch."""
    gate = torch.ones(len(model.get_submodule(PLACES[name][0]).weight), dtype=torch.float64)  # type: ignore[arg-type]

    def loss(factors: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return loss_of(model, name, factors, images, targets)

    each = vmap(jacrev(loss), in_dims=(None, 0, 0))(gate, x[:, None], y[:, None]) / len(x)
    return jacrev(loss)(gate, x, y), each, hessian(loss)(gate, x, y).diagonal()


def test_formulas_are_averaged_over_batches_by_their_sizes() -> None:
    model, x, y = network(), images(8).double(), torch.arange(8) % 4
    batches = list(zip(x.split(SIZES), y.split(SIZES), strict=True))
    for criterion in (Cubed(), CubedSamples(), Mixed()):
        found = criterion.score(model, batches, F.cross_entropy)
        assert list(found) == list(PLACES)
        for name, scores in found.items():
            expected = torch.zeros(len(scores), dtype=torch.float64)
            for inputs, targets in batches:
                first, each, second = derivatives(model, name, inputs, targets)
                values = {
                    Cubed: first**3,
                    CubedSamples: (each**3).sum(0),
                    Mixed: first * second + second**2,
                }
                expected += values[type(criterion)] * len(inputs) / len(x)  # type: ignore[index]
            torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-12)


def test_divisors_count_the_producers_of_joint_gates() -> None:
    model, batches = network(), [(images(8).double(), torch.arange(8) % 4)]
    plain = Cubed().score(model, batches, F.cross_entropy)
    divided = Cubed(divisor="n2").score(model, batches, F.cross_entropy)
    for name, places in PLACES.items():
        torch.testing.assert_close(divided[name], plain[name] / len(places) ** 2)
