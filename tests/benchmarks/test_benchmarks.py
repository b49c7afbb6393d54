"""The benchmarks run on tiny sizes and say what they should; no time is asserted."""

import copy
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest
import torch
from torch import nn

from benchmarks import attacks, baselines, choices, coverage, importance, overhead, rounds, score, snapit, timing
from benchmarks import cut as cutting
from benchmarks.timing import Row, by_turns
from secateur import build
from secateur.framework.network.size import count_macs
from secateur.utils.loading.loaders import Loaders


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and no waiting for a quiet machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(timing, "BUSY", math.inf)
    yield
    torch.set_num_threads(threads)


def tiny(batches: int | None = None, **options: object) -> Loaders:
    """Loaders of small batches in place of the benchmarks' own."""
    return overhead.make_loaders(
        build("datasets", "FASHION_MINI"), batch_size=4, seed=0, val_share=0, limit_train_batches=2, **options
    )


def check(rows: Sequence[Row]) -> None:
    assert rows
    for row in rows:
        assert row.name
        assert math.isfinite(row.value) and row.value >= 0
        assert row.low is None or row.high is None or row.low <= row.value <= row.high
        assert row.verdict == ("" if row.target is None else "met" if row.value <= row.target else "missed")


def test_contestants_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    turns = by_turns({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3, warmup=1)
    assert order == list("ab" * 4)
    assert {name: len(seconds) for name, seconds in turns.seconds.items()} == {"a": 3, "b": 3}


def test_a_contestant_may_time_itself_and_ratios_are_those_of_each_turn() -> None:
    mine = iter([9.0, 2.0, 4.0, 6.0])
    turns = by_turns({"mine": lambda: next(mine), "unit": lambda: 2.0}, repeats=3)
    row = turns.ratio("mine", "unit", target=2.0, scale=0.5)
    assert (row.value, row.verdict, turns.median("mine")) == (1.0, "met", 4.0)
    assert turns.ratio("mine", "unit", target=1.9).verdict == "missed"


def test_a_disturbed_measurement_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.0, 5.0, 5.0, 5.0])  # other processes use 5 s of the second measurement of three
    monkeypatch.setattr(timing, "BUSY", 0.1)
    monkeypatch.setattr(timing, "_other_processes", lambda: next(clock))
    runs: list[int] = []
    turns = by_turns({"a": lambda: runs.append(1)}, repeats=2, warmup=0)
    assert (len(runs), len(turns.seconds["a"]), turns.disturbed) == (3, 2, 0)


def test_tables_and_files_hold_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("one", 0.5, 0.4, 0.6, target=1.0), Row("two", 2.0, target=1.0, note="slow")]
    timing.head()
    timing.show("A title", rows)
    timing.head(2)
    shown = capsys.readouterr().out
    for text in ("threads", "A title", "0.500", "0.400-0.600", "<= 1", "met", "missed", "slow", "2 measurements"):
        assert text in shown
    timing.record(tmp_path / "found.json", {"rows": rows})
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [row["verdict"] for row in found["rows"]] == ["met", "missed"]
    assert set(found["machine"]) == {"cpu", "threads", "torch"}


def test_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "loaders", tiny)
    rows, disturbed = overhead.measure("LeNet5", repeats=2)
    check(rows)
    assert [row.target for row in rows] == [None, None, overhead.TARGET]
    assert disturbed == 0


def test_score() -> None:
    torch.manual_seed(0)
    found = tiny()
    model, batches = build("models", "LeNet5"), overhead.scoring_batches(found)
    times, memory, _ = score.measure(model, batches[:2], repeats=2)
    check(times + memory)
    assert [row.name.split(",")[0] for row in times] == ["SNIP", "SNAP"]
    assert all("MiB" in row.note for row in memory)


def test_snapit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "loaders", tiny)
    torch.manual_seed(0)
    dense, found = build("models", "LeNet5"), tiny()
    rows, small, _ = snapit.in_units(dense, found, repeats=1)
    check(rows)
    assert [row.target for row in rows] == [snapit.PRUNING_TARGET, snapit.TRAINING_TARGET]
    batch = next(iter(found.train))
    assert count_macs(small, batch[0])[0] < count_macs(dense, batch[0])[0]
    check(snapit.against_dense(dense, small, batch, repeats=2)[0])
    shares = snapit.where(small, found)
    check(shares)
    assert sum(row.value for row in shares) == pytest.approx(1)


def test_choices() -> None:
    torch.manual_seed(0)
    model, found = build("models", "LeNet5"), tiny()
    check(choices.layers("LeNet5", model, found, repeats=2, count=1)[0])
    check(choices.optimizers("LeNet5", model, found, repeats=2, count=1)[0])
    assert not any(module.training is False for module in model.modules())
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())


def test_training_for_the_comparison_of_denormals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "loaders", tiny)
    seconds, digest = choices.train(True, "LeNet5", 3)
    assert seconds > 0
    assert (digest, len(digest)) == (choices.train(True, "LeNet5", 3)[1], 64)


def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "NETWORKS", {"mobilenet_v3_small": 1.0, "squeezenet1_1": 1.0})


def test_cutting_is_compared_with_the_peer_in_time_memory_and_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)
    ratios, seconds, _ = cutting.against_peer(list(cutting.NETWORKS), repeats=1)
    check(ratios)
    check(seconds)
    check(cutting.memory(["squeezenet1_1"]))
    gain = cutting.latency(["squeezenet1_1"], repeats=1)
    assert len(gain) == 2
    assert all("of the multiply-adds" in row.note for row in gain if not math.isnan(row.value))


def test_the_peer_and_ours_leave_networks_of_the_same_kind() -> None:
    """Both cut half of the channels, so that the comparison is one."""
    model, image = cutting.network("squeezenet1_1"), torch.randn(1, 3, 224, 224)
    sizes = []
    for way in (cutting.ours, cutting.peer):
        twin = copy.deepcopy(model)
        way(twin, image)
        sizes.append(sum(parameter.numel() for parameter in twin.parameters()))
    dense = sum(parameter.numel() for parameter in model.parameters())
    assert all(size < 0.75 * dense for size in sizes)  # half of the channels each, by rankings of their own


FAST_FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "maxvit_t", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
    "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16",
]  # fmt: skip


#: large enough that drawing their weights takes a while; small ones of the same code are in test_attention.py
LARGE = {
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "googlenet",
    "maxvit_t",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_16",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in FAST_FAMILIES]
)
def test_the_smallest_network_of_each_family_is_pruned_exactly(name: str) -> None:
    assert name in coverage.FAMILIES
    row = coverage.check(name, latency_repeats=1)
    assert row["error"] < 1e-4
    assert row["params_after"] < 0.75 * row["params"]
    assert row["free"] > 0 and row["free_inexact"] >= row["free"]
    allowed = ("model output", "reduced over: LayerNorm", "meets a constant of its size: aten.add at features")
    assert all(reason.startswith(allowed) for reason in row["protected"]), row["protected"]
    assert coverage.cells(row)[0] == name


def test_the_coverage_page_has_what_was_measured() -> None:
    row = coverage.check("squeezenet1_1", latency_repeats=1)
    others = [{"name": "broken", "failed": "RuntimeError: no"}, {"name": "vast", "left_out": 633.4}]
    theirs = [row | {"name": "timm/slow", "seconds": 6.12}]
    page = coverage.markdown([row, *theirs, *others])
    assert "1 networks, broken failed; the largest error is" in page and "Above 5 s: none." in page
    assert "Left out for their size: vast (633 M)." in page and "| vast" not in page
    assert "| timm/slow | " in page.split("## A sample of timm")[1] and "Above 5 s: timm/slow 6.1 s." in page
    assert "| squeezenet1_1 | " in page and "| broken | failed | RuntimeError: no |" in page
    assert f"{row['params'] / 1e6:.1f} → {row['params_after'] / 1e6:.1f} M" in page


def test_the_seconds_of_an_attack_are_those_of_its_passes_and_scale_to_the_full_search() -> None:
    loaders = tiny()
    network = attacks.trained(loaders, epochs=1).eval()
    points = attacks.collect(list(loaders.test)[:3], loaders.mean, loaders.std)
    model = attacks.PixelModel(network, loaders.mean, loaders.std)
    right = attacks.predictions(model, points.pixels, 128) == points.targets
    seconds, processor, robust = attacks.ours("FGSM", model, points, right)
    assert seconds > 0 and processor > 0 and 0 <= robust <= 1
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    full = attacks.theirs("CarliniWagner", model, points.at(torch.arange(2)))
    assert attacks.MEASURED <= len(passes) <= attacks.MEASURED + 3
    assert full > 100 * attacks.theirs("FGSM", model, points.at(torch.arange(2)))


@pytest.mark.slow
def test_importance_is_measured_against_the_passes_it_needs() -> None:
    torch.manual_seed(0)
    model = importance.resnet20(2)
    batches = [(torch.randn(4, 1, 16, 16), torch.arange(4))]
    rows = importance.first_order("tiny", model, batches, 1)
    check(rows)
    assert [row.name for row in rows] == [f"{n}, tiny" for n in (*importance.FIRST_ORDER, *importance.SQUARED)]
    assert {row.target for row in rows} == {1.1, 1.5}
    curved = importance.second_order("tiny", model, batches, 1)
    check(curved)
    assert {(row.note, row.target) for row in curved} == {("10 passes for all channels, one for each of 14", 1.5)}
    chain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    assert {row.target for row in importance.second_order("tiny", chain, batches, 1)} == {1.5}
    row = importance.oracle("ResNet20", model, batches, 1)[0]
    check([row])
    assert row.note.endswith(" times as fast, 56 channels")


def test_the_network_of_the_importance_benchmark_is_resnet20() -> None:
    model = importance.resnet20()
    assert sum(one.numel() for one in model.parameters()) == 272_186
    assert sum(isinstance(one, nn.Conv2d | nn.Linear) for one in model.modules()) == 22


SHORT = ["--limit_train_batches", "2", "--limit_test_batches", "1", "--no_latency", "--threads", "1"]


SNIP_ROW = r"\| SNIP \| 0\.\d{4} \| [+-]\d+\.\d\d \| 98\.0 % \| \d+\.\d % \| 0\.\d\d \|"
TWO_ROUNDS = ["--only", "MagBased", "--rounds", "1", "--rounds", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "arguments", "lines"),
    [
        (baselines.main, ["--only", "SNIP"], [SNIP_ROW]),
        (rounds.main, TWO_ROUNDS, [r"\| measure \| 1 \| 2 \|", r"\| MagBased \| \d+\.\d\d \| \d+\.\d\d \|"]),
    ],
)
def test_a_table_of_runs_has_a_row_for_each_method_and_repeats_none(
    table: click.Command, arguments: list[str], lines: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = ["--model", "LeNet5", "--data_set", "FASHION_MINI", "--epochs", "3", "--results", str(tmp_path)]
    for _ in range(2):
        table.main([*shared, *arguments, "--", *SHORT], standalone_mode=False)
        found = capfd.readouterr().out
        for line in lines:
            assert re.search(line, found), found
        assert len(list(tmp_path.glob("*/*/report.json"))) == 2
