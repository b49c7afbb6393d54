"""No network is differentiated in channels_last with a layer that PyTorch computes outside of its memory."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur import prune
from secateur.framework.network import memory_format
from secateur.framework.network.convolution_faults import (
    faulty_layers,
    in_channels_last,
    is_faulty,
    safe_convolutions,
)
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.gated_layers.hard_concrete import L0Conv2d, L0SubsampledConv2d
from secateur.framework.pruning.gated_layers.l0_network import add_l0_gates, without_gates
from secateur.utils.subsampled import SubsampledConv2d
from tests import ROOT

LAST = torch.channels_last


class Own(nn.Conv2d):
    """A subclass that calls the function itself."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.conv2d(input, self.weight, self.bias, stride=self.stride, padding=(0, 1))


class Residual(nn.Module):
    """A stem, a block whose skip is a strided 1x1 convolution of the kind given, and a classifier."""

    def __init__(self, width: int = 5, kind: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.skip = kind(width, 12, 1, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.skip(self.stem(images).relu()).relu().mean((2, 3)))


class Functional(nn.Module):
    """A module that calls the function with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Conv2d(5, 4, 1, stride=2)  # as faulty: what is in the table is found by modules
        self.weight = nn.Parameter(torch.randn(4, 5, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (self.skip(images) + nn.functional.conv2d(images, self.weight, None, (2, 2))).mean((2, 3))


class Strides(TorchDispatchMode):
    """Notes the strides of the convolutions that kernels are called for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.seen.append((tuple(args[1].shape[2:]), tuple(args[3])))
        return func(*args, **(kwargs or {}))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 40))
def test_the_table_is_read_by_structure(rows: int, columns: int, down: int, right: int, inputs: int) -> None:
    weight = torch.empty(4, inputs, rows, columns)
    pointwise = (rows, columns) == (1, 1) and max(down, right) > 1
    if not pointwise or inputs == 1 or inputs >= 8:
        assert not is_faulty(weight, (down, right))
    else:
        assert is_faulty(weight, (down, right))
        assert not is_faulty(weight.to("meta"), (down, right))


@pytest.mark.parametrize("inputs", range(2, 8))
@pytest.mark.parametrize("kind", [nn.Conv2d, Own, L0Conv2d])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, nn.Sequential])
def test_layers_of_every_kind_are_found(inputs: int, kind: type[nn.Conv2d], wrap: Any) -> None:
    assert [name.rpartition("skip")[1] for name in faulty_layers(wrap(Residual(inputs, kind)))] == ["skip"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 4, 1, stride=2), nn.Conv2d(1, 4, 1, stride=2), nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 1), nn.Conv1d(4, 4, 1, stride=2), nn.Conv3d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, stride=2, groups=4), SubsampledConv2d(4, 4, 1, stride=2),
        L0SubsampledConv2d(4, 4, 1, stride=2), nn.LazyConv2d(4, 1, stride=2), nn.Conv2d(0, 4, 1, stride=2),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_others_are_not(layer: nn.Module) -> None:
    assert faulty_layers(nn.Sequential(layer)) == []


@pytest.mark.parametrize("make", [Residual, lambda: Residual(3, Own), Functional])
def test_scoring_never_reaches_the_faulty_kernel(make: Any) -> None:
    model = make().to(memory_format=LAST)
    channels = 5 if isinstance(model, Functional) else 3
    images = torch.randn(2, channels, 8, 9).contiguous(memory_format=LAST)

    def gradients(net: nn.Module, inputs: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(net(inputs).square().sum(), list(net.parameters())))

    with Strides() as strides, scoring(model):
        computed = gradients(model, images)
    assert ((1, 1), (1, 1)) in strides.seen and ((1, 1), (2, 2)) not in strides.seen
    plain = gradients(model.to(memory_format=torch.contiguous_format), images.contiguous())
    torch.testing.assert_close(computed, plain)


@contextmanager
def nothing_measured() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_format, "_measure", lambda *_: "channels_last")
        patch.setattr(memory_format, "WORTH_MEASURING", 0)
        patch.setattr(memory_format, "_cached", lambda _facts, _allowed, measure: measure())
        yield patch


@pytest.mark.parametrize(("width", "chosen"), [(5, "contiguous"), (8, "channels_last")])
def test_no_format_that_leads_into_the_fault_is_chosen(width: int, chosen: str) -> None:
    with nothing_measured():
        assert memory_format.memory_format(Residual(width), torch.randn(1, 3, 8, 8))[0] == chosen
    name, note = memory_format.usable_format("channels_last", Residual(8), Residual(width))
    assert name == chosen and ("'skip'" in note) == (chosen == "contiguous")


def pruned(model: nn.Module, **options: Any) -> list[str]:
    """Messages of the warnings of pruning to few channels."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = torch.randn(4, 3, 8, 8).contiguous(memory_format=options.pop("layout"))
        prune(model, "L1", 0.7, example_input=images, **options)
    return [str(one.message) for one in caught if "channels_last" in str(one.message)]


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
@pytest.mark.parametrize("weights", [LAST, torch.contiguous_format])
@pytest.mark.parametrize("images", [LAST, torch.contiguous_format])
def test_prune_warns_of_channels_last_in_one_line(wrap: Any, weights: Any, images: Any) -> None:
    model = wrap(Residual(16)).to(memory_format=weights)
    messages = pruned(model, layout=images)
    assert faulty_layers(model)
    assert len(messages) == (LAST in (weights, images))
    assert all("skip'" in one and "safe_strides" in one and "\n" not in one for one in messages)


def test_safe_strides_convert_the_layers() -> None:
    model = Residual(16).to(memory_format=LAST)
    names = list(model.state_dict())
    assert pruned(model, layout=LAST, safe_strides=True) == []
    assert type(model.skip) is SubsampledConv2d and list(model.state_dict()) == names
    subclass = Residual(16, Own).to(memory_format=LAST)
    assert "'skip'" in pruned(subclass, layout=LAST, safe_strides=True)[0]


def test_gates_come_and_go() -> None:
    model = Residual(6, SubsampledConv2d)
    images = torch.randn(2, 3, 8, 8)
    assert "skip" in add_l0_gates(model, images)
    assert type(model.skip) is L0SubsampledConv2d and faulty_layers(model) == []
    plain = without_gates(model)
    assert type(plain.skip) is SubsampledConv2d
    torch.testing.assert_close(plain(images), model.eval()(images))


@pytest.mark.parametrize("fused", [True, False])
def test_the_optimizer_follows_a_change_of_format(fused: bool) -> None:
    def trained(change: bool) -> Tensor:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=LAST)
        optimizer = torch.optim.Adam(model.parameters(), fused=fused)
        for step in range(3):
            model(torch.randn(2, 3, 5, 5)).square().sum().backward()
            optimizer.step()
            if change and step == 0:
                memory_format.lay_out(model, torch.contiguous_format, optimizer)
        return model.weight.detach()

    torch.testing.assert_close(trained(True), trained(False))


@pytest.mark.parametrize("kernel", [1, 3])
def test_formats_are_told_apart_for_kernels_of_one_pixel_too(kernel: int) -> None:
    layer = nn.Conv2d(5, 4, kernel)
    for layout in (LAST, torch.contiguous_format, LAST):
        memory_format.lay_out(layer, layout)
        assert in_channels_last(layer.parameters()) == (layout == LAST)


def test_nothing_is_intercepted_without_need() -> None:
    with safe_convolutions(Residual(8)), Strides() as strides:
        Residual(8)(torch.randn(1, 3, 8, 8))
    assert ((1, 1), (2, 2)) in strides.seen


SCRIPT = """
import torch
from torch import nn
from secateur.utils.subsampled import SubsampledConv2d
torch.set_num_threads(1)
for channels in range(1, 9):
    layer = SubsampledConv2d(channels, 16, 1, stride=2).to(memory_format=torch.channels_last)
    for size in (8, 9, 12, 16):
        images = torch.randn(4, channels, size, size).contiguous(memory_format=torch.channels_last)
        layer(images.requires_grad_()).square().sum().backward()
"""

PLUGIN = """
from torch import nn
class PlainSkips(nn.Module):
    def __init__(self, *, in_channels=1, num_classes=10, image_size=28):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.skip = nn.Conv2d(16, 32, 1, stride=2)
        self.head = nn.Linear(32, num_classes)
    def forward(self, images):
        return self.head(self.skip(self.stem(images)).relu().mean((2, 3)))
"""


def in_process(*command: str, checks: bool = False) -> subprocess.CompletedProcess[str]:
    """A process that computes with the instructions of the faulty kernel, wherever the processor has them."""
    memory = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    variables = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1", **(memory if checks else {})}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_no_byte_outside_its_memory_is_written() -> None:
    assert in_process("-c", SCRIPT, checks=True).returncode == 0
    broken = in_process("-c", SCRIPT.replace("SubsampledConv2d(", "nn.Conv2d("), checks=True)
    if broken.returncode == 0:
        pytest.skip("the processor lacks AVX2, or PyTorch is mended: the table may be shortened")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["before", "during", "iterative"])
def test_a_run_leaves_channels_last_when_a_cut_makes_it_faulty(schedule: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "PlainSkips.py").write_text(PLUGIN)
    crit = ["--prune_criterion", "L1", "--scope", "layer", "--pruning_limit", "0.75", "--schedule", schedule]
    crit += {"before": [], "during": ["--prune_freq", "1"], "iterative": ["--frequency", "1"]}[schedule]
    done = in_process(
        "main.py", "--model", "PlainSkips", "--plugins", str(tmp_path), *crit, "--epochs", "3", "--batch_size",
        "8", "--limit_train_batches", "3", "--limit_test_batches", "1", "--no_latency", "--memory_format",
        "channels_last", "--results_dir", str(tmp_path / "results"), "--plot_weights_freq", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = (tmp_path / "results").glob("*/report.json")
    text = report.read_text()
    assert text.count("'skip'") == 1 and '"contiguous"' in text
    assert "'skip'" in done.stdout
