"""The Hoyer losses: their measures by brute force, finite everywhere, and only until something is pruned."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import channel_groups, cut, load_model, registry, save_model
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.utils.errors import UsageError

LOSSES = ["HoyerSquare", "GroupHoyerSquare"]


def network() -> nn.Sequential:
    """A convolution with a norm, and two linear layers: images (2, 4, 4), 4 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5), nn.Linear(5, 4)
    ).double()


def hoyer(weight: Tensor) -> float:
    values = weight.flatten().tolist()
    return sum(map(abs, values)) ** 2 / sum(v * v for v in values)


def group_hoyer(weight: Tensor) -> float:
    rows = sum(math.sqrt(sum(v * v for v in weight[i].flatten().tolist())) for i in range(weight.shape[0]))
    columns = sum(math.sqrt(sum(v * v for v in weight[:, j].flatten().tolist())) for j in range(weight.shape[1]))
    return (rows**2 + columns**2) / sum(v * v for v in weight.flatten().tolist())


BRUTE = {"HoyerSquare": hoyer, "GroupHoyerSquare": group_hoyer}


@pytest.mark.parametrize("name", LOSSES)
def test_the_penalty_is_the_formula_over_tensors_of_two_or_more_dimensions(name: str) -> None:
    model = network()
    loss = build("losses", name, hoyer_reg=0.3)
    expected = 0.3 * sum(BRUTE[name](one.detach()) for one in model.parameters() if one.dim() > 1)
    assert loss.penalty(model).item() == pytest.approx(expected, rel=1e-12)
    outputs, targets = torch.randn(6, 4), torch.arange(6) % 4
    assert torch.equal(loss(outputs, targets), F.cross_entropy(outputs, targets))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_formula(name: str) -> None:
    model = network()
    build("losses", name, hoyer_reg=1.0).penalty(model).backward()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            assert parameter.grad is None or not parameter.grad.any()
            continue
        assert parameter.grad is not None
        for place in (0, parameter.numel() // 2, parameter.numel() - 1):
            step = torch.zeros(parameter.numel(), dtype=torch.float64)
            step[place] = 1e-5
            step = step.reshape(parameter.shape)
            change = BRUTE[name](parameter.detach() + step) - BRUTE[name](parameter.detach() - step)
            assert parameter.grad.flatten()[place].item() == pytest.approx(change / 2e-5, rel=1e-4, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-40, 30), name=st.sampled_from(LOSSES))
def test_the_scale_of_weights_does_not_matter_however_small(seed: int, exponent: int, name: str) -> None:
    """In float32 their squares vanish or overflow."""
    layer = nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)))
        expected = BRUTE[name](layer.weight)
        layer.weight.mul_(10.0**exponent)
    if not bool((layer.weight.abs() > 1e-36).any()):  # what float32 itself holds as good as nothing of
        return
    found = build("losses", name, hoyer_reg=1.0).penalty(layer)
    found.backward()
    assert layer.weight.grad is not None and bool(torch.isfinite(layer.weight.grad).all())
    if exponent > -34:
        assert found.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("extra", [{}, {"l1_reg": 0.1, "lp_reg": 1e-6}])
def test_values_and_gradients_are_finite_with_zeros(name: str, extra: dict[str, float]) -> None:
    model = network().float()
    with torch.no_grad():
        model[0].weight.zero_()  # a whole tensor
        model[4].weight[2] = 0  # a row
        model[4].weight[:, 3] = 0  # a column
    penalty = build("losses", name, hoyer_reg=1.0, **extra).penalty(model)
    penalty.backward()
    assert bool(torch.isfinite(penalty))
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert model[5].weight.grad is not None and model[5].weight.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_tensors_of_any_rank_have_a_measure(name: str) -> None:
    for layer in (nn.Conv1d(3, 4, 2), nn.Conv3d(2, 3, 2), nn.Embedding(5, 3), nn.Linear(0, 3)):
        loss = build("losses", name, hoyer_reg=1.0)
        weight = layer.double().weight.detach()
        expected = BRUTE[name](weight) if weight.numel() else 0.0
        assert loss.penalty(layer).item() == pytest.approx(expected, rel=1e-10)
    assert build("losses", name).penalty(nn.BatchNorm1d(3)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_the_other_penalties_and_smoothing_work_along(name: str) -> None:
    """The original dropped them without a word."""
    model = network()
    options: dict[str, Any] = {"l1_reg": 0.01, "lp_reg": 1e-5, "label_smoothing": 0.1}
    plain = build("losses", "CrossEntropy", **options)
    loss = build("losses", name, hoyer_reg=0.3, **options)
    alone = build("losses", name, hoyer_reg=0.3)
    total = plain.penalty(model) + alone.penalty(model)
    assert loss.penalty(model).item() == pytest.approx(total.item(), rel=1e-12)
    assert plain.penalty(model) > 0
    outputs, targets = torch.randn(6, 4), torch.arange(6) % 4
    assert torch.equal(loss(outputs, targets), plain(outputs, targets))


@pytest.mark.parametrize("name", LOSSES)
def test_the_penalty_ends_with_the_first_pruning_and_stays_off_in_a_loaded_network(
    name: str, tmp_path: Any
) -> None:
    loss = build("losses", name, hoyer_reg=1.0, l1_reg=0.5)
    plain = build("losses", "CrossEntropy", l1_reg=0.5)
    masked, smaller = network(), network()
    assert loss.penalty(masked) > plain.penalty(masked)
    Masks(masked).hold({"4.weight": torch.rand(5, 12) < 0.5})
    assert loss.penalty(masked) == plain.penalty(masked)
    groups = channel_groups(smaller, torch.randn(1, 2, 4, 4).double())
    cut(smaller, {"0": torch.tensor([True, False, True])}, groups)
    assert loss.penalty(smaller) == plain.penalty(smaller)
    for model in (masked, smaller):
        loaded = load_model(save_model(model, tmp_path / "one.safetensors"), network())
        assert loss.penalty(loaded) == plain.penalty(loaded)


@pytest.mark.parametrize("name", LOSSES)
def test_the_measure_falls_as_weights_gather_in_few_entries(name: str) -> None:
    layer = nn.Linear(6, 6, bias=False)
    found = []
    for count in (6, 3, 1):
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[:count, :count] = 2.0
        found.append(build("losses", name, hoyer_reg=1.0).penalty(layer).item())
    assert found[0] > found[1] > found[2] == pytest.approx(1.0 if name == "HoyerSquare" else 2.0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_negative_weight_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: hoyer_reg must be at least 0, got -1"):
        build("losses", name, hoyer_reg=-1)
    assert registry.describe("losses", name).summary
