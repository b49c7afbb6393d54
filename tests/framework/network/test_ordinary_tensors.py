"""Precisions, modes and memory layouts in which a network may be given, and a sparsity of zero."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import Masks, channel_groups, cut, measure, prune, registry, save_model
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, images, same, seeded, snapshot

NAMES = registry.names("criterions")
FAST = ("FPGM", "GroupHoyerSquare", "HoyerSquare", "SNAP", "SNIP", "TaylorOutput")
#: all of them in every way take a minute
EVERY = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in NAMES]
THRESHOLD = [name for name in NAMES if registry.get("criterions", name)().threshold is not None]


def pruned(name: str, sparsity: float, dtype: torch.dtype = torch.float32, autocast: bool = False) -> Any:
    model, x, y = seeded(ConvNet).to(dtype), images(8, dtype=dtype), torch.arange(8) % 4
    before = snapshot(model)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        warnings.simplefilter("ignore")
        report = prune(model, name, sparsity, batches=[(x[:4], y[:4]), (x[4:], y[4:])])
    return model, report, before


@pytest.mark.parametrize("name", EVERY)
def test_a_sparsity_of_zero_prunes_nothing(name: str) -> None:
    model, report, before = pruned(name, 0.0)
    assert report.reached == 0 and len(Masks(model)) == 0
    assert same(snapshot(model), before)


def test_there_are_criterions_with_a_threshold() -> None:
    assert {"HoyerSquare", "GroupHoyerSquare"} <= set(THRESHOLD)


@pytest.mark.parametrize("name", THRESHOLD)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.9])
def test_the_note_says_that_a_threshold_decides_and_what_was_reached(name: str, sparsity: float) -> None:
    model, x = seeded(ConvNet), images()
    criterion = registry.get("criterions", name)(threshold=0.15)
    report = prune(model, criterion, sparsity, example_input=x)
    assert f"{name} " in report.note and "threshold 0.15" in report.note
    assert (f"{report.reached:.4f}" in report.note) == (sparsity > 0) == (report.reached > 0)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_criterions_prune_networks_of_half_precision(name: str, dtype: torch.dtype) -> None:
    model, _, _ = pruned(name, 0.5, dtype)
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}


@pytest.mark.parametrize("name", EVERY)
def test_autocast_changes_nothing(name: str) -> None:
    assert same(snapshot(pruned(name, 0.5, autocast=True)[0]), snapshot(pruned(name, 0.5)[0]))


def test_autocast_changes_nothing_of_what_looks_cuts_and_saves(tmp_path: Path) -> None:
    model, x = seeded(ConvNet), images()
    plain = measure(model, x, latency=False), list(channel_groups(model, x))
    with torch.autocast("cpu", torch.bfloat16):
        groups = channel_groups(model, x)
        assert (measure(model, x, latency=False), list(groups)) == plain
        cut(model, {"a": torch.arange(6) > 1}, groups)
        save_model(model, tmp_path / "cut.safetensors")
        assert torch.is_autocast_enabled("cpu")
    assert model.a.out_channels == 4


def net(**layers: Tensor) -> Any:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    if "weight" in layers:
        model[2].weight = nn.Parameter(layers["weight"])
    if "bias" in layers:
        model[0].bias = nn.Parameter(layers["bias"])
    return model


def made_in_inference_mode() -> Any:
    with torch.inference_mode():
        return net()


def overlapping() -> Any:
    flat = torch.randn(48)
    return net(weight=flat.view(6, 8), bias=flat[40:])


def of_one_buffer() -> Any:
    flat = torch.randn(56)
    return net(weight=flat[:48].view(6, 8), bias=flat[48:])


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "inference mode": (made_in_inference_mode, "'0.weight'.*inference_mode"),
    "an expanded weight": (lambda: net(weight=torch.ones(1, 1).expand(6, 8)), "'2.weight'.*share memory"),
    "an expanded row": (lambda: net(weight=torch.randn(8).expand(6, 8)), "'2.weight'.*share memory"),
    "windows": (lambda: net(weight=torch.randn(13).as_strided((6, 8), (1, 1))), "'2.weight'.*share memory"),
    "an expanded bias": (lambda: net(bias=torch.ones(1).expand(8)), "'0.bias'.*share memory"),
    "views of the same memory": (overlapping, "'0.bias' and '2.weight' share memory"),
    "no values": (lambda: net().to("meta"), "'0.weight'.*meta"),
}
TAKEN: dict[str, Callable[[], Any]] = {
    "views of one buffer": of_one_buffer,
    "transposed": lambda: net(weight=torch.randn(8, 6).t()),
    "every second": lambda: net(weight=torch.randn(12, 16)[::2, ::2]),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["Magnitude", "SNIP", "SNAP", "ChannelNorm"])
def test_tensors_that_cannot_be_changed_by_themselves_are_named(case: str, name: str) -> None:
    make, words = REFUSED[case]
    model, x = make(), torch.randn(8, 4)
    for call in (lambda: prune(model, name, 0.5, batches=[(x, torch.arange(8) % 3)]), lambda: measure(model, x)):
        with pytest.raises(UsageError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("name", ["Magnitude", "SNIP", "SNAP", "ChannelNorm"])
def test_other_layouts_are_pruned_like_contiguous_ones(case: str, name: str) -> None:
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    model = TAKEN[case]()
    plain = net()
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        prune(each, name, 0.5, batches=[(x, y)])
    assert same(snapshot(model), snapshot(plain))


def test_a_copy_of_a_network_made_in_inference_mode_is_taken() -> None:
    prune(copy.deepcopy(made_in_inference_mode()), "SNIP", 0.5, batches=[(torch.randn(4, 4), torch.arange(4) % 3)])


@pytest.mark.parametrize("name", ["SNIP", "SNAP", "TaylorGate", "FPGM"])
def test_inputs_made_in_inference_mode_and_calls_inside_it_are_taken(name: str) -> None:
    first = seeded(ConvNet)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    x, y = images(8), torch.arange(8) % 4
    prune(first, name, 0.5, batches=[(x, y)])
    with torch.inference_mode():
        a, b = x.clone(), y.clone()
        prune(second, name, 0.5, batches=[(a, b)])
        assert torch.is_inference_mode_enabled()
    prune(third, name, 0.5, batches=[(a, b)])
    measure(third, a, latency=False), channel_groups(third, a)
    assert same(snapshot(second), snapshot(first)) and same(snapshot(third), snapshot(first))


@pytest.mark.parametrize(("name", "sparsity"), [("HoyerSquare", 0.5), ("ChannelNorm", 0.99)])
def test_warnings_point_at_the_line_that_called(name: str, sparsity: float) -> None:
    model = seeded(ConvNet)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    with pytest.warns(UserWarning, match=name) as caught:
        prune(model, name, sparsity, example_input=images())
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu]
)
@pytest.mark.parametrize("name", ["SNIP", "SNAP"])
def test_weights_of_a_dtype_without_arithmetic_are_named(name: str, dtype: torch.dtype) -> None:
    model: Any = seeded(ConvNet)
    model.b.weight = nn.Parameter(model.b.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(UsageError, match=f"'b.weight' is {str(dtype).removeprefix('torch.')}.*float32"):
        prune(model, name, 0.5, example_input=images(), batches=[(images(), torch.arange(4))])


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse_coo": Tensor.to_sparse,
    "sparse_csr": lambda x: x.flatten(1).to_sparse_csr(),
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")  # torch warns of its prototypes
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", ["example_input", "inputs", "targets"])
def test_data_that_is_not_dense_is_named(place: str, kind: str) -> None:
    x, y, model = images(), torch.arange(4), seeded(ConvNet)
    odd = ODD[kind](y.float() if place == "targets" and kind != "sparse_csr" else x)
    given: dict[str, Any] = {"example_input": x, "batches": [(x, y)]}
    if place == "example_input":
        given[place] = odd
    else:
        given["batches"] = [(x, y), (odd, y) if place == "inputs" else (x, odd)]
        place += " of batch 1"
    before = snapshot(model)
    with pytest.raises(UsageError, match=f"^{place} .*{kind}"):
        prune(model, "SNIP", 0.5, **given)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("name", ["SNAP", "SNIP", "TaylorOutput"])
def test_the_inputs_get_no_gradient(name: str) -> None:
    x = images(8).requires_grad_()
    prune(seeded(ConvNet), name, 0.3, batches=[(x, torch.arange(8) % 4)])
    assert x.grad is None and x.requires_grad
