"""Networks that break pruning tools: each was reported broken once."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from secateur import channel_groups, cut, prune
from secateur.framework.network.size import count_macs
from secateur.utils.errors import UsageError
from secateur.utils.vision import torchvision
from tests.networks import Net, assert_cut_is_mask, images


@dataclass
class Logits:
    """An output that is no tensor."""

    logits: Tensor


def two(run: Callable[..., Any], width: int = 8) -> Net:
    torch.manual_seed(0)
    return Net(run, a=nn.Conv2d(3, width, 3, padding=1), b=nn.Conv2d(width, 4, 3)).eval()  # type: ignore[return-value]


def test_a_weight_normed_layer_leaves_the_rest_to_be_cut() -> None:
    torch.manual_seed(0)
    normed = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    model = nn.Sequential(normed, nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    prune(model, "ChannelNorm", 0.3, example_input=images(2))
    assert model[2].out_channels < 6


@pytest.mark.parametrize("wrap", [Logits, lambda y: {"out": [y]}, lambda y: {y}], ids=["dataclass", "dict", "set"])
def test_classes_are_never_cut_whatever_they_are_returned_in(wrap: Callable[[Tensor], Any]) -> None:
    groups = channel_groups(two(lambda net, x: wrap(net.b(F.relu(net.a(x))))), images(1))
    assert {name: group.protected for name, group in groups.items()} == {"a": None, "b": "model output"}


def test_a_network_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(UsageError, match="returns no tensor"):
        channel_groups(two(lambda net, x: float(net.b(net.a(x)).sum())), images(1))


@pytest.mark.parametrize("width", [4, 7, 12, 16])
@pytest.mark.parametrize("gate", [slice(-1, None), slice(0, 1)], ids=["last", "first"])
def test_a_channel_picked_by_its_position_protects_its_group(gate: slice, width: int) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        out: Tensor = net.b(h * torch.sigmoid(h[:, gate]))
        return out

    assert channel_groups(two(run, width), images(1))["a"].protected == "selected at a constant position"


def tail(end: Callable[[Tensor], Tensor]) -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.i(x)
        z = net.a(h)
        return end(net.o(h + net.b(z * torch.sigmoid(z).sum(-1, keepdim=True))))

    torch.manual_seed(0)
    return Net(run, i=nn.Linear(8, 16), a=nn.Linear(16, 12), b=nn.Linear(12, 16), o=nn.Linear(16, 3))


@pytest.mark.parametrize(
    "end",
    [
        lambda y: torch.where(torch.tensor([True, True, False]), y, torch.full_like(y, -math.inf)),
        lambda y: y.argmax(-1),
        lambda y: torch.complex(y, y),
        lambda y: (y * 100).long(),
    ],
    ids=["minus infinity", "argmax", "complex", "integers"],
)
def test_a_wrong_cut_is_found_out_behind_any_output(end: Callable[[Tensor], Tensor]) -> None:
    assert channel_groups(tail(end), torch.randn(2, 8))["a"].protected is not None
    assert channel_groups(tail(lambda y: y), torch.randn(2, 8))["a"].protected is not None


def test_layers_that_run_in_training_alone_follow() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.a(x))
            return (self.b(h), self.aux(h)) if self.training else self.b(h)

    model, x = Auxiliary().eval(), images(2)
    groups = channel_groups(model, x)
    assert groups["aux"].protected == "model output" and groups["a"].protected is None
    cut(model, {"a": torch.arange(8) % 2 == 0}, groups)
    assert model.aux.in_channels == 4
    model.train()(x)[1].sum().backward()


def test_googlenet_trains_after_a_cut() -> None:
    torch.manual_seed(0)
    model = torchvision().models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=5)
    x = torch.randn(2, 3, 96, 96)
    groups = channel_groups(model, x)
    cut(model, {n: torch.arange(g.channels) % 2 == 0 for n, g in groups.items() if g.protected is None}, groups)
    model.train()
    assert model(x).aux_logits1.shape == (2, 5)


def test_an_input_that_the_network_changes_is_the_users_own() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.25)
        out: Tensor = net.b(F.relu(net.a(x)))
        return out

    model, x = two(run), images(2)
    before = x.clone()
    assert channel_groups(model, x)["a"].protected is None
    assert torch.equal(x, before)


def test_a_budget_that_no_step_can_reach_is_refused_before_the_first() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 5),
    )  # fmt: skip
    with pytest.raises(UsageError, match="at most 0"):
        prune(model, "SNAPit", 0.97, batches=[(images(4), torch.arange(4))], budget="macs", min_channels=6)
    assert model[0].out_channels == 16


def residual() -> nn.Module:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(16, width, 3, padding=1), nn.Conv2d(width, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.b(F.relu(self.a(x))))

    torch.manual_seed(1)
    blocks = [Block(16), Block(20), Block(24), Block(28)]
    return nn.Sequential(nn.Conv2d(3, 16, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_budget_is_met_in_steps_where_single_groups_can_be_moved(scope: str) -> None:
    report = prune(
        residual(), "ChannelNorm", 0.5, example_input=torch.randn(2, 3, 12, 12), budget="weights", scope=scope,
        round_to=8 if scope == "layer" else 2,
    )  # fmt: skip
    assert report.reached == pytest.approx(0.5, abs=0.01)


def test_whole_blocks_go_in_steps_too() -> None:
    model, x = residual(), torch.randn(2, 3, 12, 12)
    dense = count_macs(model, x)[0]
    prune(model, "ChannelNorm", 0.9, example_input=x, budget="macs", min_channels=0, round_to=8)
    assert count_macs(model, x)[0] == pytest.approx(0.1 * dense, abs=0.01 * dense)
    sizes = [block.a.out_channels for block in model[1:5]]  # type: ignore[attr-defined, index]
    assert all(size % 8 == 0 or size in (20, 28) for size in sizes) and 0 in sizes


def test_marks_on_parameters_stay() -> None:
    model = two(lambda net, x: net.b(F.relu(net.a(x))))
    model.get_submodule("a").weight.no_decay = True  # type: ignore[union-attr]
    prune(model, "ChannelNorm", 0.5, example_input=images(1))
    assert model.get_submodule("a").weight.no_decay  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": "0.5"}, "sparsity .* '0.5'"),
        ({"budget": 3}, "budget .* 3"),
        ({"scope": 2}, "scope .* 2"),
        ({"min_channels": 1.5}, "min_channels .* 1.5"),
        ({"seed": "a"}, "seed .* 'a'"),
        ({"round_to": True}, "round_to .* 'auto', got True"),
    ],
)
def test_arguments_of_another_type_are_one_line(options: dict[str, Any], words: str) -> None:
    model = two(lambda net, x: net.b(F.relu(net.a(x))))
    given: dict[str, Any] = {"sparsity": 0.5, **options}
    with pytest.raises(UsageError, match=words):
        prune(model, "ChannelNorm", example_input=images(1), **given)


def test_what_is_free_can_be_masked_one_channel_at_a_time() -> None:
    model = residual().double()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    groups = channel_groups(model, x)
    for name, group in groups.items():
        if group.protected is not None:
            continue
        keep = {name: torch.arange(group.channels) != group.channels - 1}
        assert_cut_is_mask(copy.deepcopy(model), keep, groups, x, rtol=1e-10, atol=1e-12)


def equal_once_cut(model: nn.Module) -> None:
    x = images(2)
    groups = channel_groups(model, x)
    keep = {name: torch.arange(group.channels) % 2 == 0 for name, group in groups.items() if not group.protected}
    assert_cut_is_mask(copy.deepcopy(model), keep, groups, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_that_copies_entries_leaves_channels_free(mode: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1, padding_mode=mode), nn.ReLU(), nn.Conv2d(6, 4, 3),
    )  # fmt: skip
    groups = channel_groups(model, images(1))
    assert {name: group.protected for name, group in groups.items()} == {"0": None, "2": None, "4": "model output"}
    equal_once_cut(model)


def joined(sizes: Callable[[Tensor, Tensor], tuple[int, int]]) -> Net:
    def run(net: Net, x: Tensor) -> Tensor:
        one, other = net.a(x), net.b(x)
        first, second = sizes(one, other)
        both = x.new_zeros(len(x), first + second, *one.shape[2:])
        both[:, :first] = one
        both[:, first:] = other
        out: Tensor = net.c(F.relu(both))
        return out

    torch.manual_seed(0)
    return Net(run, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 6, 3), c=nn.Conv2d(14, 4, 3)).eval()  # type: ignore[return-value]


def test_channels_written_into_one_tensor_are_followed() -> None:
    model = joined(lambda one, other: (one.shape[1], other.shape[1]))
    groups = channel_groups(model, images(1))
    assert {name: group.protected for name, group in groups.items()} == {"a": None, "b": None, "c": "model output"}
    assert {part.tensor: int(part.index.min()) for part in groups["b"].slices}["c.weight"] == 8
    equal_once_cut(model)


def test_channels_written_to_fixed_places_are_protected() -> None:
    groups = channel_groups(joined(lambda one, other: (8, 6)), images(1))
    assert all("a cut does not compute" in str(groups[name].protected) for name in "ab")


def pieces(at: Callable[[int], int], widths: tuple[int, ...]) -> Net:
    """The first `at(channels)` channels go one way, the others another."""

    def run(net: Net, x: Tensor) -> Tensor:
        h = torch.cat([net.a(x), net.c(x)], 1) if len(widths) > 1 else net.a(x)
        n = at(h.shape[1])
        out: Tensor = net.b(torch.cat([h[:, :n].relu(), h[:, n:].sigmoid()], 1))
        return out

    torch.manual_seed(0)
    layers = {name: nn.Conv2d(3, width, 1) for name, width in zip("ac", widths, strict=False)}
    return Net(run, **layers, b=nn.Conv2d(sum(widths), 5, 1)).double().eval()


@pytest.mark.parametrize("part", [2, 3, 4])
@pytest.mark.parametrize("widths", [(5,), (9,), (10,), (12,), (13,), (3, 4), (4, 5), (4, 8), (6, 6)])
def test_a_share_of_the_channels_is_cut_right_or_not_at_all(part: int, widths: tuple[int, ...]) -> None:
    model, x = pieces(lambda channels: channels // part, widths), images(2, dtype=torch.float64)
    groups = channel_groups(model, x)
    free = {name: group for name, group in groups.items() if group.protected is None}
    assert free or sum(widths) % part
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        keep = {name: torch.rand(group.channels, generator=generator) < 0.5 for name, group in free.items()}
        for mask in keep.values():
            mask[torch.randint(len(mask), (), generator=generator)] = True
        assert_cut_is_mask(copy.deepcopy(model), keep, groups, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("start", [0.0, 1e-6])
def test_a_wrong_cut_is_found_out_in_a_branch_that_is_closed_at_first(start: float) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.i(x)
        z = net.a(h)
        out: Tensor = net.o(h + net.gate * net.b(z / z.shape[1] ** 0.5))
        return out

    torch.manual_seed(0)
    model = Net(run, i=nn.Linear(8, 16), a=nn.Linear(16, 12), b=nn.Linear(12, 16), o=nn.Linear(16, 3))
    model.gate = nn.Parameter(torch.full((1,), start))
    assert channel_groups(model, torch.randn(2, 8))["a"].protected == "a cut does not compute what a mask computes"


def test_a_wrong_cut_is_found_out_beside_a_large_constant() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        h = net.a(x)
        out: Tensor = net.b(h / h.shape[1]) * 1e-3 + 100
        return out

    assert channel_groups(two(run), images(2))["a"].protected == "a cut does not compute what a mask computes"


def test_an_output_without_a_finite_number_tells_nothing() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        out: Tensor = (net.b(net.a(x)) - 1e9).log()
        return out

    assert str(channel_groups(two(run), images(2))["a"].protected).startswith("the output has no finite")
