"""All regularisers: brute force in float64, invariances, gradients, zeros, and the channels of a network."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import channel_groups, cut
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.training.regularisers.regulariser import Regularised, regulariser_of
from secateur.utils.errors import UsageError

ELEMENT = ["L1", "TransformedL1", "Hoyer", "HoyerSquare"]
STRUCTURAL = ["GroupLasso", "GroupHoyer", "GroupHoyerSquare"]
SCALE_FREE = ["Hoyer", "HoyerSquare", "GroupHoyer", "GroupHoyerSquare"]


def norm(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def element(name: str, weight: Tensor) -> float:
    values = weight.flatten().tolist()
    size = sum(map(abs, values))
    if name == "L1":
        return size
    if name == "TransformedL1":
        return sum(2 * abs(value) / (1 + abs(value)) for value in values)
    if size == 0:
        return 0.0
    return size / norm(values) if name == "Hoyer" else size**2 / norm(values) ** 2


def structural(name: str, weight: Tensor, fibres: bool = False, parts: int = 1) -> float:
    filters, channels = [], []
    for n in range(weight.shape[0]):
        own = [weight[n, c] for c in range(weight.shape[1])]
        if fibres:
            filters += [norm([float(one.flatten()[k]) for one in own]) for k in range(own[0].numel())]
        else:
            filters.append(norm(weight[n].flatten().tolist()))
    step = weight.shape[0] // parts
    for part in range(parts):
        for c in range(weight.shape[1]):
            own = [weight[n, c] for n in range(part * step, (part + 1) * step)]
            if fibres:
                channels += [norm([float(one.flatten()[k]) for one in own]) for k in range(own[0].numel())]
            else:
                channels.append(norm(torch.stack(own).flatten().tolist()))
    return in_form(name, filters, channels, norm(weight.flatten().tolist()))


def in_form(name: str, filters: list[float], channels: list[float], whole: float) -> float:
    if name == "GroupLasso":
        return sum(filters) + sum(channels)
    if whole == 0:
        return 0.0
    if name == "GroupHoyer":
        return (sum(filters) + sum(channels)) / whole
    return (sum(filters) ** 2 + sum(channels) ** 2) / whole**2


def brute(name: str, weight: Tensor) -> float:
    return element(name, weight) if name in ELEMENT else structural(name, weight)


def holder(*tensors: Tensor) -> nn.Module:
    model = nn.Module()
    for number, tensor in enumerate(tensors):
        model.register_parameter(f"weight{number}", nn.Parameter(tensor.clone()))
    return model


def penalty(name: str, model: nn.Module, **options: Any) -> Tensor:
    value: Tensor = build("losses", name, decay=1.0, **options).penalty(model)
    return value


def drawn(seed: int, shape: list[int], share: float = 0.7) -> Tensor:
    """A tensor with zeros among its entries."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weight * (torch.rand(shape, generator=generator) < share)


SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("L1", 10.0),
        ("Hoyer", 1.825742),
        ("HoyerSquare", 3.333333),
        ("TransformedL1", 5.433333),
        ("GroupLasso", 16.398346),
        ("GroupHoyer", 2.993915),
        ("GroupHoyerSquare", 4.543600),
    ],
)
def test_a_tensor_computed_by_hand(name: str, expected: float) -> None:
    model = holder(torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, 4.0]]))
    assert penalty(name, model).item() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(ELEMENT + STRUCTURAL), seed=st.integers(0, 10**6), shapes=st.lists(SHAPES, max_size=3))
def test_the_penalty_is_the_sum_of_the_measures_of_the_tensors(
    name: str, seed: int, shapes: list[list[int]]
) -> None:
    tensors = [drawn(seed + number, shape) for number, shape in enumerate([*shapes, [2, 3]])]
    assert penalty(name, holder(*tensors)).item() == pytest.approx(
        sum(brute(name, one) for one in tensors), rel=1e-10
    )


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(STRUCTURAL), seed=st.integers(0, 10**6), shape=SHAPES)
def test_fibres_are_norms_over_one_axis_only(name: str, seed: int, shape: list[int]) -> None:
    weight = drawn(seed, shape)
    found = penalty(name, holder(weight), groups="fibres").item()
    assert found == pytest.approx(structural(name, weight, fibres=True), rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(SCALE_FREE), seed=st.integers(0, 10**6), shape=SHAPES, exponent=st.integers(-30, 30))
def test_hoyer_forms_do_not_depend_on_the_scale(name: str, seed: int, shape: list[int], exponent: int) -> None:
    weight = drawn(seed, shape, share=1.0)
    scaled = penalty(name, holder(weight * -(10.0**exponent)))
    assert scaled.item() == pytest.approx(penalty(name, holder(weight)).item(), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(ELEMENT + STRUCTURAL), seed=st.integers(0, 10**6), shape=SHAPES)
def test_the_order_of_filters_and_channels_does_not_matter(name: str, seed: int, shape: list[int]) -> None:
    weight = drawn(seed, shape)
    generator = torch.Generator().manual_seed(seed)
    moved = weight
    for dim, size in enumerate(shape):
        moved = moved.index_select(dim, torch.randperm(size, generator=generator))
    assert penalty(name, holder(moved)).item() == pytest.approx(penalty(name, holder(weight)).item(), rel=1e-10)


@pytest.mark.parametrize("groups", ["whole", "fibres"])
@pytest.mark.parametrize("name", ELEMENT + STRUCTURAL)
def test_gradients_away_from_zero(name: str, groups: str) -> None:
    options = {"groups": groups} if name in STRUCTURAL else {}
    loss = build("losses", name, decay=0.7, **options)
    model = holder(drawn(1, [3, 2, 2], share=1.0), drawn(2, [2, 4], share=1.0))
    assert_gradients(loss.penalty, model)


def assert_gradients(function: Callable[[nn.Module], Tensor], model: nn.Module) -> None:
    """Compare the gradients of a function of a model in float64 with differences."""
    function(model).backward()
    for parameter in model.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = parameter.data.view(-1)
        for place in range(0, len(flat), max(1, len(flat) // 7)):
            value, ends = flat[place].item(), []
            for shift in (1e-6, -1e-6):
                flat[place] = value + shift
                ends.append(function(model).item())
            flat[place] = value
            difference = (ends[0] - ends[1]) / 2e-6
            assert gradient.view(-1)[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ELEMENT + STRUCTURAL)
def test_gradcheck(name: str) -> None:
    loss = build("losses", name)
    weights = [drawn(3, [3, 2, 2], share=1.0).requires_grad_(), drawn(4, [2, 3], share=1.0).requires_grad_()]
    from secateur.framework.training.regularisers.measures import differentiable

    assert torch.autograd.gradcheck(lambda *tensors: differentiable(loss.measure, tensors), weights)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("groups", ["whole", "fibres", "coupled"])
@pytest.mark.parametrize("name", ELEMENT + STRUCTURAL)
def test_zeros_are_finite_and_stay_zero(name: str, groups: str, amp: bool) -> None:
    model = network().float()
    with torch.no_grad():
        for parameter in model[5].parameters():  # a whole layer
            parameter.zero_()
        model[0].weight[1] = 0  # a filter, and all that belongs to its channel
        model[0].bias[1] = model[1].weight[1] = model[1].bias[1] = 0
        model[4].weight.reshape(5, 3, 4)[:, 1] = 0
    loss = build("losses", name, decay=1.0, **({"groups": groups} if name in STRUCTURAL else {}))
    loss.prepare(model, torch.randn(1, 2, 4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        value = loss.penalty(model)
    value.backward()
    assert value.dtype == torch.float32 and bool(value.isfinite()) and value > 0
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model[0].weight.grad is not None and model[0].weight.grad[0].any()
    if name in STRUCTURAL and groups == "coupled":
        assert not model[0].weight.grad[1].any()
    if name == "L1":  # the same value whatever autocast says
        assert value.item() == pytest.approx(sum(p.abs().sum().item() for p in model.parameters() if p.dim() > 1))


@pytest.mark.parametrize("name", ELEMENT + STRUCTURAL)
def test_a_network_of_zeros_has_no_penalty(name: str) -> None:
    model = holder(torch.zeros(3, 4), torch.zeros(2, 3, 2))
    value = penalty(name, model)
    value.backward()
    assert value.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5), nn.Linear(5, 4)
    ).double()


class Residual(nn.Module):
    """Two branches whose channels are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(inputs)))
        return self.last((hidden + self.second(hidden)).mean((2, 3)))


@pytest.mark.parametrize("make", [network, Residual])
@pytest.mark.parametrize("name", STRUCTURAL)
def test_coupled_groups_are_the_channels_that_a_cut_removes(name: str, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    model, example = make().double(), torch.randn(1, 2, 4, 4).double()
    loss = build("losses", name, decay=1.0, groups="coupled")
    loss.prepare(model, example)
    parameters, expected = dict(model.named_parameters()), 0.0
    for group in free_groups(channel_groups(model, example)).values():
        squares = [0.0] * group.channels
        for part in group.slices:
            if part.tensor in parameters:
                for channel in range(group.channels):
                    own = parameters[part.tensor].detach().index_select(part.dim, part.index[channel])
                    squares[channel] += sum(value * value for value in own.flatten().tolist())
        norms, whole = [math.sqrt(one) for one in squares], math.sqrt(sum(squares))
        expected += in_form(name, norms, [], whole)
    assert loss.penalty(model).item() == pytest.approx(expected, rel=1e-10)
    assert_gradients(loss.penalty, model)


def test_a_channel_that_the_coupled_lasso_made_small_can_be_cut() -> None:
    torch.manual_seed(0)
    model, example = Residual(), torch.randn(8, 2, 4, 4)
    loss = build("losses", "GroupLasso", decay=1.0, groups="coupled")
    loss.prepare(model, example)
    groups = channel_groups(model, example)
    (group,) = free_groups(groups).values()
    with torch.no_grad():
        for part in group.slices:
            if part.tensor in dict(model.named_parameters()):
                model.get_parameter(part.tensor).index_fill_(part.dim, part.index[2], 0.0)
    whole = loss.penalty(model)
    before = model.eval()(example)
    cut(model, {group.name: torch.tensor([True, True, False, True])}, groups)
    assert torch.allclose(model(example), before, atol=1e-6)
    assert whole > 0 and loss.penalty(model) == 0  # the penalty ends with the cut


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose1d(4, 6, 3, groups=2)])
@pytest.mark.parametrize("name", STRUCTURAL)
def test_input_channels_of_grouped_convolutions_are_of_their_part(name: str, layer: nn.Module) -> None:
    layer.double()
    weight = layer.get_parameter("weight").detach()
    assert penalty(name, layer).item() == pytest.approx(structural(name, weight, parts=2), rel=1e-10)


def test_errors_name_what_is_wrong() -> None:
    for name in ELEMENT + STRUCTURAL:
        with pytest.raises(UsageError, match=f"{name}: decay must be at least 0, got -1"):
            build("losses", name, decay=-1.0)
    with pytest.raises(UsageError, match="unknown groups of GroupLasso 'copled': did you mean 'coupled'"):
        build("losses", "GroupLasso", groups="copled")
    with pytest.raises(UsageError, match="call prepare"):
        build("losses", "GroupHoyer", groups="coupled").penalty(network())
    with pytest.raises(UsageError, match="GroupLasso: this network has no channels that can be cut"):
        build("losses", "GroupLasso").prepare(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(1, 4))


def test_a_regulariser_is_added_to_any_loss() -> None:
    model, inner = network(), build("losses", "CrossEntropy", l1_reg=0.5, label_smoothing=0.1)
    regulariser = build("losses", "Hoyer", decay=0.2)
    loss = Regularised(inner, regulariser)
    outputs, targets = torch.randn(6, 4), torch.arange(6) % 4
    assert torch.equal(loss(outputs, targets), inner(outputs, targets))
    both = inner.penalty(model) + regulariser.penalty(model)
    assert loss.penalty(model).item() == pytest.approx(both.item(), rel=1e-12)
    assert regulariser_of(loss) is regulariser and regulariser_of(inner) is None
