"""Hard-concrete gates: probabilities by formula and by drawing, the penalty against a sum written out."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.framework.pruning.gated_layers.hard_concrete import (
    EPSILON,
    L0Conv2d,
    L0Linear,
    expected_l0,
)
from secateur.framework.pruning.gated_layers.l0_network import add_l0_gates
from secateur.losses.CrossEntropy import CrossEntropy
from secateur.losses.L0CrossEntropy import L0CrossEntropy
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, images, seeded


def layers(**options: Any) -> list[Any]:
    torch.manual_seed(0)
    return [
        L0Linear(7, 5, **options).double(),
        L0Conv2d(3, 6, (3, 2), padding=1, **options).double(),
        L0Conv2d(4, 6, 3, groups=2, bias=False, **options).double(),
    ]


def spread_out(layer: Any, scale: float = 2.0) -> Any:
    with torch.no_grad():
        layer.log_alpha.normal_(0, scale)
    return layer


def test_a_gate_with_log_alpha_zero_is_open_with_probability_0_831822() -> None:
    layer = layers()[0]
    with torch.no_grad():
        layer.log_alpha.zero_()
    assert layer.open_probability().tolist() == pytest.approx([0.831822] * 7, abs=1e-6)


def test_the_share_of_open_gates_drawn_is_the_formulas() -> None:
    layer = layers()[0]
    with torch.no_grad():
        layer.log_alpha.copy_(torch.linspace(-3, 3, 7))
    torch.manual_seed(1)
    drawn = layer.draw_gates(200_000).detach()
    assert drawn.shape == (200_000, 7) and float(drawn.min()) == 0 and float(drawn.max()) == 1
    torch.testing.assert_close((drawn != 0).double().mean(0), layer.open_probability(), atol=0.005, rtol=0)


def test_expected_l0_is_the_mean_number_of_weights_and_biases_that_draws_leave() -> None:
    for layer in map(spread_out, layers()):
        torch.manual_seed(2)
        open_ = (layer.draw_gates(20_000) != 0).double()
        weight = torch.ones_like(layer.weight)
        per_gate = weight.sum([dim for dim in range(weight.dim()) if dim != layer.gate_dim])
        count = open_ @ per_gate
        if layer.bias is not None:
            count = count + (open_.sum(1) if layer.gate_dim == 0 else layer.bias.numel())
        assert float(layer.expected_l0().detach()) == pytest.approx(float(count.mean()), rel=0.01)


def brute_force(layer: Any) -> float:
    """-R / N, one weight after the other."""
    total = 0.0
    for gate, log_alpha in enumerate(layer.log_alpha.tolist()):
        closed = 1 / (1 + math.exp(-(layer.temperature * math.log(0.1 / 1.1) - log_alpha)))
        stays = 1 - min(max(closed, EPSILON), 1 - EPSILON)
        for w in layer.weight.select(layer.gate_dim, gate).flatten().tolist():
            total += stays * (layer.rho / 2 * w * w + layer.l0_reg)
        if layer.bias is not None and layer.gate_dim == 0:
            total += stays * (layer.rho / 2 * layer.bias[gate].item() ** 2 + layer.l0_reg)
    if layer.bias is not None and layer.gate_dim == 1:
        total += sum(layer.rho / 2 * b * b for b in layer.bias.tolist())
    return total / layer.samples


@settings(deadline=None, max_examples=30)
@given(
    l0_reg=st.floats(0, 5),
    rho=st.floats(0, 5),
    samples=st.integers(1, 60_000),
    temperature=st.floats(0.1, 2),
    scale=st.floats(0, 4),
)
def test_the_penalty_is_the_sum_written_out(
    l0_reg: float, rho: float, samples: int, temperature: float, scale: float
) -> None:
    for layer in layers(l0_reg=l0_reg, rho=rho, samples=samples, temperature=temperature):
        spread_out(layer, scale)
        assert float(layer.penalty().detach()) == pytest.approx(brute_force(layer), rel=1e-9, abs=1e-12)


def test_more_cost_closes_gates_weights_and_gated_biases_alike() -> None:
    """The sign of lambda: every log_alpha is pushed down, the bias of a convolution included."""
    for layer in layers(l0_reg=1.0):
        layer.penalty().backward()
        assert bool((layer.log_alpha.grad > 0).all())
    alone = L0Conv2d(1, 2, 1, l0_reg=1.0)
    with torch.no_grad():
        alone.log_alpha.zero_()
    assert float(alone.penalty().detach()) == pytest.approx(2 * 2 * 0.831822, rel=1e-5)  # two weights, two biases


@pytest.mark.parametrize("fill", [0.0, 1e-30, 1e3])
@pytest.mark.parametrize("log_alpha", [-100.0, -4.6, 0.0, 4.6, 100.0])
def test_penalty_and_gradients_are_finite_everywhere(fill: float, log_alpha: float) -> None:
    model = nn.Sequential(L0Conv2d(2, 3, 3, rho=0.3), nn.Flatten(), L0Linear(3 * 4, 4, rho=0.3))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(fill)
            layer.bias.fill_(fill)
            layer.log_alpha.fill_(log_alpha)
    loss = L0CrossEntropy(l1_reg=1e-3, lp_reg=1e-9)
    total = loss.penalty(model) + loss(model(torch.zeros(2, 2, 4, 4)), torch.tensor([0, 1]))
    total.backward()
    assert bool(torch.isfinite(total))
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters())


def test_the_loss_adds_the_layers_costs_to_the_penalties_of_cross_entropy() -> None:
    model = nn.Sequential(*layers(l0_reg=0.5, rho=2.0, samples=3))
    for layer in model:
        spread_out(layer)
    plain = nn.Sequential(*(nn.Linear(1, 1) for _ in model))
    for twin, layer in zip(plain, model, strict=True):
        twin.weight, twin.bias = layer.weight, layer.bias
    expected = sum(map(brute_force, model)) + float(CrossEntropy(l1_reg=0.1).penalty(plain).detach())
    assert float(L0CrossEntropy(l1_reg=0.1).penalty(model).detach()) == pytest.approx(expected)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(L0CrossEntropy()(x, y), CrossEntropy()(x, y))
    assert torch.equal(L0CrossEntropy(l1_reg=0.1).penalty(plain), CrossEntropy(l1_reg=0.1).penalty(plain))


def test_training_and_eval_mode_use_the_bias_and_the_same_gates_of_their_kind() -> None:
    conv = spread_out(layers()[1])
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    plain = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv.eval()(x), plain * conv.mean_gates().view(-1, 1, 1))
    torch.manual_seed(3)
    found = conv.train()(x)
    torch.manual_seed(3)
    torch.testing.assert_close(found, plain * conv.draw_gates().view(-1, 1, 1))
    line = spread_out(layers()[0])
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(line.eval()(x), nn.functional.linear(x * line.mean_gates(), line.weight, line.bias))
    torch.manual_seed(3)
    found = line.train()(x)
    torch.manual_seed(3)
    torch.testing.assert_close(found, nn.functional.linear(x, line.weight * line.draw_gates(), line.bias))


@pytest.mark.parametrize("local", [False, True])
def test_gates_are_drawn_for_a_batch_or_with_local_rep_for_each_sample(local: bool) -> None:
    conv, line = L0Conv2d(3, 40, 1, local_rep=local), L0Linear(40, 5, local_rep=local)
    x = torch.ones(3, 3, 2, 2)
    out = conv(x)
    assert torch.equal(out[0], out[1]) is not local
    out = line(torch.ones(3, 6, 40))  # a dimension more, as in sequences
    assert torch.equal(out[0], out[1]) is not local
    assert torch.equal(out[0, 0], out[0, 1])


def test_initial_gates_have_the_drop_rate_asked_for() -> None:
    torch.manual_seed(4)
    for rate in (0.1, 0.5, 0.9):
        log_alpha = L0Linear(20_000, 1, droprate_init=rate).log_alpha.detach()
        assert float(log_alpha.mean()) == pytest.approx(math.log(1 - rate) - math.log(rate), abs=1e-3)
        assert float(log_alpha.std()) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("rate", "temperature", "said"),
    [
        (0.0, 1.0, "droprate_init"),
        (1.0, 1.0, "droprate_init"),
        (0.5, 0.0, "temperature"),
        (0.5, "x", "temperature"),
    ],
)
def test_rates_that_make_no_sense_are_refused(rate: float, temperature: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        L0Linear(3, 2, droprate_init=rate, temperature=temperature)


def test_the_expected_l0_of_a_network_is_that_of_its_layers() -> None:
    model = seeded(ConvNet)
    assert expected_l0(model) == 0
    add_l0_gates(model, images(1))
    with torch.no_grad():
        for layer in (model.a, model.b, model.c, model.d):
            layer.log_alpha.zero_()
    weights = sum(layer.weight.numel() for layer in (model.a, model.b, model.c, model.d)) + model.a.bias.numel()
    free = model.c.bias.numel() + model.d.bias.numel()
    assert expected_l0(model) == pytest.approx(0.831822 * weights + free, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 2 / 3, 1.7])
def test_the_gates_of_eval_mode_do_not_depend_on_the_temperature(temperature: float) -> None:
    """z = clip(1.2 * sigmoid(log_alpha) - 0.1, 0, 1), without noise and without the temperature of training."""
    for layer in layers(temperature=temperature):
        with torch.no_grad():
            layer.log_alpha.copy_(torch.linspace(-4, 4, len(layer.log_alpha)))
        expected = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-a)) - 0.1)) for a in layer.log_alpha.tolist()]
        assert 0.0 in expected and 1.0 in expected and len(set(expected)) > 3
        for found in (layer.mean_gates(), layer.eval().gates(3)):
            assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.2, 2 / 3, 1.7])
def test_the_gates_of_training_are_the_formula_of_the_uniform_numbers_drawn(temperature: float) -> None:
    layer = spread_out(layers(temperature=temperature)[0])
    torch.manual_seed(5)
    found = layer.draw_gates(4).tolist()
    torch.manual_seed(5)
    drawn = torch.empty(4, 7, dtype=torch.float64).uniform_(EPSILON, 1 - EPSILON).tolist()
    for gates, row in zip(found, drawn, strict=True):
        logits = [math.log(u) - math.log(1 - u) + a for u, a in zip(row, layer.log_alpha.tolist(), strict=True)]
        soft = [1 / (1 + math.exp(-logit / temperature)) for logit in logits]
        assert gates == pytest.approx([min(1.0, max(0.0, 1.2 * one - 0.1)) for one in soft], abs=1e-9)
