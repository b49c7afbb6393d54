"""Whole runs, from the command line to what lies in the run folder."""

import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build, registry
from secateur.framework.pruning.selection.ranking import Keep
from secateur.framework.reporting.console import Console
from secateur.framework.reporting.plots.gallery import save_figure
from secateur.framework.reporting.plots.scores import draw_last_scores
from secateur.framework.schedules.base import targets
from secateur.framework.settings.run_config import FLAGS
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.training.events import PruneEvent
from secateur.losses.CrossEntropy import CrossEntropy
from secateur.utils.errors import UsageError
from tests.command_line import FONTS, Run, run_main

SMALL = "--epochs 2 --batch_size 32 --limit_train_batches 3 --limit_test_batches 2 --threads 1 --progress off"
LENET5_PARAMS, LENET5_MACS, LENET5_NODES = 142_798, 497_160, 226


def launch(place: Path, *arguments: object, code: int = 0, plots: bool = False) -> Run:
    """Run the command line in `place`, on very little data."""
    fewer = [] if plots else ["--plot_weights_freq", "0"]
    run = run_main(place, *SMALL.split(), *fewer, *arguments, plots=plots)
    assert run.code == code, run.err
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that several tests look at."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def cut_run(place: Path) -> Run:
    """LeNet5, channels cut before training."""
    return launch(place, "--prune_criterion", "SNAPit", "--run_name", "cut / v1.0", plots=True)


@pytest.fixture(scope="module")
def masked_run(place: Path) -> Run:
    """LeNet5, weights masked before training."""
    return launch(place, "--prune_criterion", "SNIP", "--pruning_limit", "0.9", plots=True)


@pytest.fixture(scope="module", params=["cut_run", "masked_run"])
def finished(request: pytest.FixtureRequest) -> Run:
    """Either of the two."""
    run: Run = request.getfixturevalue(request.param)
    return run


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter == 0 for name, parameter in model.named_parameters() if parameter.dim() > 1}


def subprocess_run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cwd / "cache"), "MPLCONFIGDIR": FONTS}
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=120, check=False)


# What a run leaves


def test_a_run_leaves_everything_in_one_folder(finished: Run) -> None:
    folder = finished.folder
    files = (
        "codebase/main.py",
        "codebase/framework/commands/train.py",
        "codebase/utils/data/fashion_mini.npz",
        "command.txt",
        "config.yaml",
        "decisions.json",
        "environment.json",
        "metrics.jsonl",
        "models/LeNet5_finished.safetensors",
        "models/LeNet5_last.safetensors",
        "models/LeNet5_best.safetensors",
        "output/log.txt",
        "plots/curves.png",
        "plots/layers.png",
        "plots/scores.png",
        "report.json",
    )
    for file in files:
        assert (folder.path / file).stat().st_size > 0, file
    assert list(folder.tensorboard.glob("events.out.tfevents.*"))
    left_out = {".git", ".venv", "results", "__pycache__"}
    assert not left_out & {part.name for part in folder.codebase.rglob("*")}
    assert {part.name for part in folder.path.iterdir()} == {Path(file).parts[0] for file in files} | {
        "tensorboard"
    }


def test_the_last_line_is_the_folder_and_its_name_is_dated(cut_run: Run, masked_run: Run) -> None:
    stamp = r"results/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_"
    assert re.fullmatch(stamp + r"cut---v1-0(_\d+)?", cut_run.lines[-1])
    assert re.fullmatch(stamp + r"LeNet5_SNIP(_\d+)?", masked_run.lines[-1])
    assert cut_run.err == "" and masked_run.err == ""


def test_the_log_holds_what_was_printed(finished: Run) -> None:
    printed = [line.rstrip() for line in finished.lines]
    assert finished.folder.log.read_text(encoding="utf-8").splitlines() == printed
    assert len([line for line in printed if line.startswith("epoch ")]) == 2


def test_the_command_and_the_settings_are_kept(cut_run: Run) -> None:
    assert cut_run.folder.command.read_text().startswith("python main.py --epochs 2")
    assert "'cut / v1.0'" in cut_run.folder.command.read_text()
    settings = yaml.safe_load(cut_run.folder.config.read_text())
    assert list(settings) == list(FLAGS)
    assert (settings["device"], settings["threads"], settings["memory_format"]) == ("cpu", 1, "contiguous")
    assert [name for name, value in settings.items() if value == "auto"] == []
    facts = json.loads(cut_run.folder.environment.read_text())
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0] or facts["packages"]["torch"]
    assert {"python", "device", "git", "started", "threads"} <= set(facts)


KEYS: dict[str, Any] = {
    "model": str,
    "criterion": str,
    "data_set": str,
    "seed": int,
    "asked_sparsity": float,
    "reached": {"weight_sparsity": float, "node_sparsity": float},
    "dense": {"accuracy": (float, type(None)), "params": int, "macs": int, "bytes": int, "latency_ms": dict},
    "pruned": {"accuracy": float, "params": int, "macs": int, "bytes": int, "latency_ms": dict},
    "train": {"epochs": int, "seconds": float, "cumulative_macs": int, "dense_cumulative_macs": int},
}


def test_the_report_has_the_promised_keys(finished: Run) -> None:
    report = finished.report
    for key, kind in KEYS.items():
        parts = {key: kind} if not isinstance(kind, dict) else kind
        holder = report if not isinstance(kind, dict) else report[key]
        for name, expected in parts.items():
            assert isinstance(holder[name], expected), (key, name)
    for part in ("dense", "pruned"):
        assert set(report[part]["latency_ms"]) == {"1", "64"}
        assert all(value > 0 for value in report[part]["latency_ms"].values())


def macs_by_hand(model: nn.Module) -> int:
    """Weights times output positions of every convolution and linear layer."""
    found: list[int] = []

    def count(module: Any, _: Any, output: Tensor) -> None:
        found.append(module.weight.numel() * output[0, 0].numel())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_the_report_tells_the_truth(finished: Run) -> None:
    report, model = finished.report, finished.network()
    dense = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    total = sum(p.numel() for p in dense.parameters() if p.dim() > 1)
    left = sum(int(p.count_nonzero()) for p in weights.values())
    hidden = [p.flatten(1).any(dim=1).sum() for name, p in weights.items() if name != "classifier.5.weight"]
    assert report["dense"]["params"] == LENET5_PARAMS and report["dense"]["macs"] == LENET5_MACS
    assert macs_by_hand(dense) == LENET5_MACS
    assert report["pruned"]["params"] == sum(p.numel() for p in model.parameters())
    assert report["pruned"]["macs"] == macs_by_hand(model)
    assert report["pruned"]["bytes"] == len(finished.bytes())
    assert report["reached"]["weight_sparsity"] == pytest.approx(1 - left / total, abs=1e-12)
    assert report["reached"]["node_sparsity"] == pytest.approx(1 - int(sum(hidden)) / LENET5_NODES, abs=1e-12)
    kind = "node_sparsity" if report["criterion"] == "SNAPit" else "weight_sparsity"
    assert report["reached"][kind] == pytest.approx(report["asked_sparsity"], abs=1 / LENET5_NODES)
    assert report["dense"]["accuracy"] is None
    assert report["pruned"]["accuracy"] == accuracy_by_hand(model)


def accuracy_by_hand(model: nn.Module, samples: int = 64) -> float:
    """Share of the first test images that the network gets right, all in one batch."""
    dataset = build("datasets", "FASHION_MINI", data_dir=None, download=False)
    images, targets = dataset.load(train=False)
    inputs = (images[:samples].float() / 255 - dataset.mean[0]) / dataset.std[0]
    with torch.no_grad():
        outputs = model.eval()(inputs)
    return int((outputs.argmax(dim=1) == targets[:samples]).sum()) / samples


def test_accuracy_is_counted_over_samples_also_where_the_last_batch_is_smaller(tmp_path: Path) -> None:
    whole = ("--model", "LeNet300", "--batch_size", "600", "--limit_test_batches", "9")  # 600, 600, 600, 200
    result = launch(tmp_path, *whole, "--prune_criterion", "SNAP")
    expected = accuracy_by_hand(result.network(), 2000)
    assert result.report["pruned"]["accuracy"] == expected
    tested = launch(tmp_path, *whole, "--eval")
    assert tested.report["accuracy"] == expected and tested.report["samples"] == 2000


def test_the_work_of_training_is_counted_with_the_scoring(cut_run: Run) -> None:
    report = cut_run.report
    after = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) MACs a sample\n", cut_run.out)]
    assert len(after) == 7
    scoring = 5 * 32 * sum([LENET5_MACS, *after[:-1]])  # each step scores what the last one left
    training = 2 * 3 * 32 * after[-1]
    assert report["train"]["cumulative_macs"] == 3 * (scoring + training)
    assert report["train"]["dense_cumulative_macs"] == 3 * 2 * 3 * 32 * LENET5_MACS
    assert report["train"]["epochs"] == 2


SCALARS = {
    "acc": ("train", "test"),
    "loss": ("train", "test"),
    "sparse": ("weight", "node", "hm", "log_disk_size"),
    "time": ("gpu_time", "batch_time", "flops_per_sample", "flops_log_cum"),
}


def test_metrics_have_a_row_per_epoch_and_one_for_the_test(finished: Run) -> None:
    first, second, test = finished.rows
    assert [row["samples"] for row in finished.rows] == [96, 192, 192]
    assert [row["step"] for row in finished.rows] == [3, 6, 6]
    for row in (first, second):
        assert {"acc/train", "loss/train", "acc/val", "loss/val"} <= set(row)
        assert row["time/gpu_time"] > 0 and row["time/batch_time"] > 0
    assert test["acc/test"] == finished.report["pruned"]["accuracy"]
    assert "time/gpu_time" not in test  # nothing was trained since the last row
    weight, accuracy = test["sparse/weight"], test["acc/test"]
    assert test["sparse/hm"] == pytest.approx(2 * weight * accuracy / (weight + accuracy))
    assert test["time/flops_per_sample"] == finished.report["pruned"]["macs"]
    assert test["time/flops_log_cum"] == pytest.approx(
        math.log10(finished.report["train"]["cumulative_macs"]), abs=1e-9
    )
    size = finished.report["pruned"]["csr_bytes"] or finished.report["pruned"]["bytes"]
    assert test["sparse/log_disk_size"] == pytest.approx(math.log(size), rel=1e-6)


def test_tensorboard_shows_the_same_numbers_under_the_known_keys(finished: Run) -> None:
    events = EventAccumulator(str(finished.folder.tensorboard))
    events.Reload()
    known = {f"{group}/{key}" for group, keys in SCALARS.items() for key in keys}
    assert known <= set(events.Tags()["scalars"])
    for key in events.Tags()["scalars"]:
        shown = [(event.step, event.value) for event in events.Scalars(key)]
        told = [(row["samples"], row[key]) for row in finished.rows if key in row]
        assert [step for step, _ in shown] == [step for step, _ in told]
        assert [value for _, value in shown] == pytest.approx([value for _, value in told], rel=1e-6)


def test_the_plots_are_pictures_of_something(finished: Run) -> None:
    files = sorted(finished.folder.plots.glob("*"))
    assert [file.stem for file in files] == [
        "curves", "layer_sparsity", "layers", "network", "network_confusion", "network_saliency", "scores",
        "weight_histograms", "weight_saliency", "weights",
    ]  # fmt: skip
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(maxcolors=10**6) or ()) > 10


# Repeating a run


@pytest.mark.slow
def test_the_folder_repeats_its_run_bit_for_bit(cut_run: Run) -> None:
    done = subprocess_run([sys.executable, "codebase/main.py", "--config", "config.yaml"], cut_run.folder.path)
    assert done.returncode == 0, done.stderr
    again = RunFolder(cut_run.folder.path / done.stdout.splitlines()[-1])
    assert again.path.parent.parent == cut_run.folder.path
    assert again.checkpoint("LeNet5").read_bytes() == cut_run.bytes()
    assert yaml.safe_load(again.config.read_text()) == yaml.safe_load(cut_run.folder.config.read_text())
    assert json.loads(again.environment.read_text())["git"] is None  # a copy has no commit of its own


CRITERION = '''
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.network.layers import prunable_weights


class Smallest(Criterion):
    """Magnitude to a power."""

    granularity = "weight"

    def __init__(self, *, power=1.0):
        super().__init__(power=power)
        self.power = power

    def score(self, model, batches, loss, groups=None):
        return {name: weight.detach().abs() ** self.power for name, weight in prunable_weights(model).items()}
'''
TRAINER = '''
from secateur.trainers.DefaultTrainer import DefaultTrainer


class Doubled(DefaultTrainer):
    """Twice the loss."""

    def train_step(self, batch):
        return 2 * super().train_step(batch)
'''


@pytest.mark.slow
def test_the_folder_repeats_a_run_with_plugins_that_are_no_longer_there(tmp_path: Path) -> None:
    for file, text in (("criterions/Smallest.py", CRITERION), ("trainers/Doubled.py", TRAINER)):
        (tmp_path / "mine" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / file).write_text(text)
    first = launch(
        tmp_path, "--plugins", "mine", "--prune_criterion", "Smallest", "--set", "criterion.power=2",
        "--train_scheme", "Doubled", "--schedule", "during", "--epochs", "3", "--model", "LeNet300",
    )  # fmt: skip
    shutil.rmtree(tmp_path / "mine")
    done = subprocess_run([sys.executable, "codebase/main.py", "--config", "config.yaml"], first.folder.path)
    assert done.returncode == 0, done.stderr
    again = RunFolder(first.folder.path / done.stdout.splitlines()[-1])
    assert again.checkpoint("LeNet300").read_bytes() == first.bytes()


def test_equal_seeds_give_equal_bits_and_another_seed_other_ones(place: Path, cut_run: Run) -> None:
    same = launch(place, "--prune_criterion", "SNAPit", "--run_name", "other name")
    other = launch(place, "--prune_criterion", "SNAPit", "--seed", "334")
    assert same.bytes() == cut_run.bytes()
    assert other.bytes() != cut_run.bytes()
    assert same.folder.path != cut_run.folder.path
    told = [key for key in cut_run.rows[0] if not key.startswith("time/") and key != "seconds"]
    assert [[row.get(key) for key in told] for row in same.rows] == [
        [row.get(key) for key in told] for row in cut_run.rows
    ]


# Going on from a run


def test_eval_gives_the_accuracy_of_the_report_to_the_last_digit(place: Path, finished: Run) -> None:
    result = launch(place, "--eval", "--checkpoint_name", finished.folder.name)
    assert result.report["accuracy"] == finished.report["pruned"]["accuracy"]
    assert result.report["loss"] == pytest.approx(finished.rows[-1]["loss/test"], rel=1e-6)
    assert result.report["top5"] >= result.report["accuracy"]
    assert f"{finished.folder.name}/LeNet5_finished on FASHION_MINI" in result.out
    assert not list(result.folder.models.iterdir())
    best = ("--checkpoint_name", finished.folder.path, "--checkpoint_model", "LeNet5_best")
    by_path = launch(place, "--eval", *best)
    assert by_path.report["accuracy"] == result.report["accuracy"]  # the best is what was finished


def test_eval_takes_and_names_the_newest_finished_run(tmp_path: Path) -> None:
    launch(tmp_path, "--model", "LeNet300", "--epochs", "0")
    newest = launch(tmp_path, "--model", "LeNet300", "--seed", "1")
    result = launch(tmp_path, "--eval", "--model", "LeNet300")
    assert f"{newest.folder.name}/models/LeNet300_finished.safetensors (of the newest run with one)" in result.out
    assert result.report["accuracy"] == newest.report["pruned"]["accuracy"]


def test_training_on_from_a_network_without_pruning_keeps_shapes_and_zeros(place: Path, finished: Run) -> None:
    result = launch(place, "--checkpoint_name", finished.folder.name, "--prune_criterion", "EmptyCrit")
    before, after = finished.network(), result.network()
    assert shapes(after) == shapes(before)
    assert all(torch.equal(zeros(before)[name], zeros(after)[name]) for name in zeros(before))
    assert any(not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True))
    assert result.report["reached"] == pytest.approx(finished.report["reached"])
    assert result.report["asked_sparsity"] == 0.0
    assert result.report["dense"]["params"] == LENET5_PARAMS  # the first network, not the one it began with
    assert result.report["dense"]["accuracy"] is None


@pytest.mark.parametrize("criterion", ["SNIP", "SNAP"])
def test_training_on_with_a_further_criterion_prunes_what_is_left(
    place: Path, finished: Run, criterion: str
) -> None:
    result = launch(
        place, "--checkpoint_name", finished.folder.name, "--prune_criterion", criterion, "--pruning_limit", "0.95"
    )
    before, after = finished.network(), result.network()
    kind = "node_sparsity" if criterion == "SNAP" else "weight_sparsity"
    assert result.report["reached"][kind] == pytest.approx(0.95, abs=0.003)
    if criterion == "SNIP":
        assert shapes(after) == shapes(before)
        assert all(bool(zeros(after)[name][was].all()) for name, was in zeros(before).items())
    else:
        assert sum(p.numel() for p in after.parameters()) < sum(p.numel() for p in before.parameters())
        masks = dict(Masks(after))
        assert set(masks) == set(Masks(before))
        parameters = dict(after.named_parameters())
        assert all(not parameters[name][mask == 0].any() for name, mask in masks.items())


def test_asking_for_less_than_is_gone_already_says_so(place: Path, masked_run: Run) -> None:
    result = launch(
        place, "--checkpoint_name", masked_run.folder.name, "--prune_criterion", "SNIP", "--pruning_limit", "0.3"
    )
    assert result.report["reached"]["weight_sparsity"] == pytest.approx(0.9, abs=1e-4)
    (warning,) = result.report["warnings"]
    assert "asked for sparsity 0.3000, reached 0.9" in warning and "already pruned" in warning


def test_pretrained_weights_come_from_a_file_or_a_run_folder(place: Path, cut_run: Run) -> None:
    file = cut_run.folder.checkpoint("LeNet5")
    start = ("--prune_criterion", "EmptyCrit", "--epochs", "0")
    by_file, by_folder = (
        launch(place, *start, "--pretrained", file),
        launch(place, *start, "--pretrained", cut_run.folder.name),
    )
    assert by_file.bytes() == by_folder.bytes() == cut_run.bytes()
    assert by_file.report["dense"]["accuracy"] is None  # what it started from was pruned


def test_pretrained_weights_come_from_any_safetensors_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = build("models", "LeNet300", in_channels=1, num_classes=10, image_size=28)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    base = ("--model", "LeNet300", "--prune_criterion", "EmptyCrit", "--epochs", "0")
    result = launch(tmp_path, *base, "--pretrained", "theirs.safetensors")
    loaded = result.network().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert result.report["dense"]["accuracy"] == result.report["pruned"]["accuracy"]  # it is dense


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: tensors.pop("classifier.5.bias"), "the file lacks 'classifier.5.bias'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "the model lacks 'extra'"),
        (lambda tensors: tensors.update({"features.0.weight": torch.zeros(3, 1, 5, 5)}), "(3, 1, 5, 5)"),
    ],
)
def test_pretrained_weights_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], expected: str
) -> None:
    model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    tensors = dict(model.state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    result = launch(tmp_path, "--pretrained", "theirs.safetensors", code=2)
    assert result.err.count("\n") == 1 and expected in result.err
    assert not (tmp_path / "results").exists()


# The dense network


@pytest.mark.slow
def test_a_run_without_pruning_is_the_dense_network(tmp_path: Path) -> None:
    result = launch(tmp_path, "--prune_criterion", "EmptyCrit", plots=True)
    report = result.report
    assert report["reached"] == {"weight_sparsity": 0.0, "node_sparsity": 0.0}
    assert report["dense"]["accuracy"] == report["pruned"]["accuracy"]
    assert report["dense"]["params"] == report["pruned"]["params"] == LENET5_PARAMS
    assert not (result.folder.plots / "scores.png").exists()
    # and a pruned run of the same settings finds it
    pruned = launch(tmp_path, "--prune_criterion", "SNAP")
    assert pruned.report["dense"]["accuracy"] == report["pruned"]["accuracy"]
    assert f"dense accuracy from results/{result.folder.name}" in pruned.out
    other = launch(tmp_path, "--prune_criterion", "SNAP", "--learning_rate", "0.01")
    assert other.report["dense"]["accuracy"] is None


def test_train_dense_trains_the_dense_network_first_and_changes_no_bit_of_the_other(
    place: Path, cut_run: Run, tmp_path: Path
) -> None:
    result = launch(tmp_path, "--prune_criterion", "SNAPit", "--train_dense")
    dense = launch(tmp_path, "--prune_criterion", "EmptyCrit")
    assert result.report["dense"]["accuracy"] == dense.report["pruned"]["accuracy"]
    assert (result.folder.path / "dense" / "models" / "LeNet5_finished.safetensors").read_bytes() == dense.bytes()
    assert (result.folder.path / "dense" / "report.json").is_file()
    assert result.bytes() == cut_run.bytes()


def test_a_pruned_network_is_no_start_for_the_dense_one(place: Path, masked_run: Run, cut_run: Run) -> None:
    before = len(list((place / "results").iterdir()))
    for run in (masked_run, cut_run):
        for flag in ("--checkpoint_name", "--pretrained"):
            result = launch(place, flag, run.folder.name, "--train_dense", code=2)
            assert "--train_dense" in result.err and run.folder.name in result.err
            assert "already pruned" in result.err and result.err.count("\n") == 1
    assert len(list((place / "results").iterdir())) == before


# When and how much is pruned


WHEN = {
    "weights before": ("SNIPitDuring", "before", [], [0.75, 0.75, 0.75, 0.75]),
    "weights during": ("SNIP", "during", ["--prune_freq", "1"], [0, 0, 0.6875, 0.75]),
    "weights after": ("SNIP", "after", [], [0, 0, 0, 0.75]),
    "weights after, named": ("Magnitude", None, ["--prune_delay", "0", "--prune_freq", "1"], [0, 0, 0.75, 0.75]),
    "channels before": ("ChannelNorm", "before", [], [0.75, 0.75, 0.75, 0.75]),
    "channels during": ("SNAPitDuring", None, [], [0, 0, 0.6875, 0.75]),
    "channels during, late": ("SNAP", "during", ["--prune_delay", "1"], [0, 0, 0, 0.75]),
    "channels after": ("SNAP", "after", [], [0, 0, 0, 0.75]),
}


@pytest.mark.parametrize("case", WHEN)
def test_pruning_happens_when_it_was_asked_for(tmp_path: Path, case: str) -> None:
    criterion, schedule, flags, expected = WHEN[case]
    when = [] if schedule is None else ["--schedule", schedule]
    result = launch(
        tmp_path, "--prune_criterion", criterion, *when, *flags, "--pruning_limit", "0.75", "--epochs", "4",
        "--limit_train_batches", "2", "--model", "LeNet300",
    )  # fmt: skip
    key = "sparse/weight" if case.startswith("weights") else "sparse/node"
    *epochs, test = result.rows
    # the row of an epoch is of the network that was trained in it: what is pruned at its end comes with the next
    assert [row[key] for row in epochs] == pytest.approx(expected, abs=0.003)
    assert test[key] == pytest.approx(0.75, abs=0.003)
    assert result.report["warnings"] == []


@pytest.mark.parametrize("schedule", ["before", "during", "after"])
def test_what_prunes_nothing_does_so_at_any_time(tmp_path: Path, schedule: str) -> None:
    result = launch(tmp_path, "--prune_criterion", "EmptyCrit", "--schedule", schedule, "--epochs", "1")
    assert "pruned" not in result.out.splitlines()[0] and result.report["warnings"] == []
    assert result.report["reached"]["weight_sparsity"] == 0.0


@pytest.mark.slow
def test_only_the_last_step_keeps_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "secateur.framework.reporting.plots.run.draw_all", lambda *arguments: seen.extend(arguments[3])
    )
    launch(tmp_path, "--prune_criterion", "SNIPit", "--epochs", "0", plots=True)
    *early, last = seen
    assert len(early) == 6 and all(not event.scores and not event.keep for event in early)
    assert [event.asked for event in seen] == pytest.approx(targets(0.5, 7))
    assert set(last.scores) == set(last.keep) != set()


def test_a_limit_out_of_reach_is_told_not_hidden(tmp_path: Path) -> None:
    result = launch(
        tmp_path, "--prune_criterion", "SNAP", "--pruning_limit", "0.9", "--protect", "features", "--epochs", "1"
    )
    report = result.report
    assert report["asked_sparsity"] == 0.9 and report["reached"]["node_sparsity"] < 0.4
    (warning,) = report["warnings"]
    assert "0.9000" in warning and f"warning: {warning}" in result.lines


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ResNet18", "Conv6"])
def test_larger_networks_are_cut_and_tested_again(tmp_path: Path, model: str) -> None:
    result = launch(tmp_path, "--model", model, "--prune_criterion", "SNAPit", "--pruning_limit", "0.8")
    assert result.report["reached"]["node_sparsity"] == pytest.approx(0.8, abs=0.01)
    assert result.report["pruned"]["params"] < 0.3 * result.report["dense"]["params"]
    again = launch(tmp_path, "--eval", "--model", model)
    assert again.report["accuracy"] == result.report["pruned"]["accuracy"]
    start = ("--checkpoint_name", result.folder.name, "--prune_criterion", "EmptyCrit")
    on = launch(tmp_path, "--model", model, *start)
    assert shapes(on.network()) == shapes(result.network())


# How it is trained


def test_tuning_holds_out_a_fifth_and_leaves_the_test_set_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = registry.get("datasets", "FASHION_MINI")
    opened: list[bool] = []
    load = cls.load  # type: ignore[attr-defined]

    def noting(self: Any, train: bool) -> Any:
        opened.append(train)
        return load(self, train)

    monkeypatch.setattr(cls, "load", noting)
    result = launch(tmp_path, "--tuning", "--limit_test_batches", "100")
    assert opened and all(opened)
    assert result.report["pruned"]["accuracy"] == max(row["acc/val"] for row in result.rows if "acc/val" in row)
    assert result.report["pruned"]["accuracy"] * 1200 == pytest.approx(
        round(result.report["pruned"]["accuracy"] * 1200)
    )


@pytest.mark.slow
def test_without_a_validation_set_the_last_network_is_the_finished_one(tmp_path: Path) -> None:
    result = launch(tmp_path, "--val_share", "0", plots=True)
    assert result.folder.stems() == ["LeNet5_finished", "LeNet5_last"]
    assert result.bytes() == result.bytes("last")
    assert all("acc/val" not in row for row in result.rows)
    assert (result.folder.plots / "curves.png").is_file()


def test_the_validation_set_picks_the_network(tmp_path: Path) -> None:
    result = launch(tmp_path, "--epochs", "4", "--learning_rate", "0.05")
    accuracies = [row["acc/val"] for row in result.rows if "acc/val" in row]
    assert accuracies.index(max(accuracies)) < 3  # or this test shows nothing
    assert result.bytes() == result.bytes("best") != result.bytes("last")


def test_no_epochs_prune_and_test(tmp_path: Path) -> None:
    result = launch(tmp_path, "--epochs", "0", "--prune_criterion", "SNIP")
    assert result.report["train"]["epochs"] == 0
    assert result.report["reached"]["weight_sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert len(result.rows) == 1
    assert result.report["train"]["dense_cumulative_macs"] == 0
    after = launch(tmp_path, "--epochs", "0", "--prune_criterion", "Magnitude")
    assert after.report["reached"]["weight_sparsity"] == pytest.approx(0.5, abs=1e-4)


def test_a_time_limit_stops_says_so_and_still_tests(tmp_path: Path) -> None:
    during = ("--prune_criterion", "SNIPitDuring", "--epochs", "9")
    result = launch(tmp_path, "--max_training_minutes", "1e-9", *during)
    report = result.report
    assert report["train"]["epochs"] == 1 and result.rows[0]["step"] == 1
    assert "max_training_minutes" in report["train"]["stopped"]
    assert any(line.startswith("stopped: max_training_minutes") for line in result.lines)
    assert report["reached"]["weight_sparsity"] == 0.0  # it did not come to that, and says so
    assert "ended before the last pruning" in report["warnings"][0]
    assert result.rows[-1]["acc/test"] == report["pruned"]["accuracy"]


def test_save_freq_keeps_a_checkpoint_every_few_epochs(tmp_path: Path) -> None:
    result = launch(tmp_path, "--save_freq", "2", "--epochs", "5", "--limit_train_batches", "1")
    saved = [stem for stem in result.folder.stems() if "save_at" in stem]
    assert saved == ["LeNet5_save_at_epoch_1", "LeNet5_save_at_epoch_3"]
    assert result.bytes("save_at_epoch_1") != result.bytes("save_at_epoch_3")


def test_eval_freq_validates_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()  # a clock on which every batch takes a second, as does every other reading
    monkeypatch.setattr(
        "secateur.framework.reporting.recorder.time", SimpleNamespace(monotonic=lambda: float(next(ticks)))
    )
    result = launch(tmp_path, "--eval_freq", "2", "--epochs", "1", "--limit_train_batches", "5")
    assert [(row["step"], "acc/train" in row) for row in result.rows] == [
        (2, False), (4, False), (5, True), (5, False),
    ]  # fmt: skip
    # milliseconds; what an evaluation takes is not counted as training
    assert [row["time/gpu_time"] for row in result.rows[:3]] == [1000.0] * 3


@pytest.mark.parametrize("optimizer", registry.names("optimizers"))
def test_every_optimizer_trains_and_is_cut_with_the_network(tmp_path: Path, optimizer: str) -> None:
    rate = ["--learning_rate", "1.0"] if optimizer == "ADADELTA" else []
    result = launch(
        tmp_path, "--optimizer", optimizer, *rate, "--prune_criterion", "SNAPitDuring", "--epochs", "4",
        "--limit_train_batches", "6", "--model", "LeNet300",
    )  # fmt: skip
    losses = [row["loss/train"] for row in result.rows if "loss/train" in row]
    assert losses[-1] < losses[0]
    assert result.report["reached"]["node_sparsity"] == pytest.approx(0.5, abs=0.003)


@pytest.mark.parametrize("name", ["step", "multistep", "cosine"])
def test_a_schedule_of_the_learning_rate_changes_the_weights_from_the_second_epoch(
    place: Path, cut_run: Run, name: str
) -> None:
    flags = {"step": ["--lr_step", "1"], "multistep": ["--lr_milestones", "1"], "cosine": []}[name]
    result = launch(place, "--prune_criterion", "SNAPit", "--lr_schedule", name, *flags)
    told = ["loss/train", "acc/train", "loss/val"]
    assert [result.rows[0][key] for key in told] == [cut_run.rows[0][key] for key in told]
    assert result.rows[1]["loss/val"] != cut_run.rows[1]["loss/val"]


@pytest.mark.parametrize("flag", [("--grad_clip", "0.01"), ("--grad_noise", "0.05"), ("--label_smoothing", "0.2")])
def test_a_setting_of_training_has_an_effect(place: Path, cut_run: Run, flag: tuple[str, str]) -> None:
    assert launch(place, "--prune_criterion", "SNAPit", *flag).bytes() != cut_run.bytes()


def test_penalties_are_trained_on_but_reported_apart(place: Path, cut_run: Run) -> None:
    result = launch(place, "--prune_criterion", "SNAPit", "--l1_reg", "1e-4", "--lp_reg", "1e-6")
    assert result.rows[0]["penalty/train"] > 0 == cut_run.rows[0]["penalty/train"]
    assert result.bytes() != cut_run.bytes()
    # the first batch has seen no step yet, and scoring no penalty: the same channels stay
    assert shapes(result.network()) == shapes(cut_run.network())


def test_the_loss_by_hand() -> None:
    outputs = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    targets = torch.tensor([0, 2])
    logs = outputs - outputs.exp().sum(dim=1, keepdim=True).log()
    plain = -(logs[0, 0] + logs[1, 2]) / 2
    assert float(CrossEntropy()(outputs, targets)) == pytest.approx(float(plain), rel=1e-6)
    smooth = 0.7 * plain + 0.3 * -logs.mean()
    assert float(CrossEntropy(label_smoothing=0.3)(outputs, targets)) == pytest.approx(float(smooth), rel=1e-6)
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -4.0]]))
        model.bias.fill_(-0.5)
    assert float(CrossEntropy().penalty(model)) == 0.0
    assert CrossEntropy(l1_reg=0.1).penalty(model).item() == pytest.approx(0.1 * 7.5, rel=1e-5)
    powers = 3**0.2 + 4**0.2 + 0.5**0.2
    assert CrossEntropy(lp_reg=0.01).penalty(model).item() == pytest.approx(0.01 * powers, rel=1e-5)
    both = CrossEntropy(l1_reg=0.1, lp_reg=0.01).penalty(model)
    assert both.item() == pytest.approx(0.75 + 0.01 * powers, rel=1e-5)
    both.backward()
    assert model.weight.grad is not None and bool((model.weight.grad.sign() == model.weight.sign()).all())
    with pytest.raises(UsageError, match="label_smoothing"):
        CrossEntropy(label_smoothing=1.0)


def test_penalties_have_finite_gradients_where_weights_are_zero_or_nearly() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1e-30, -1e-12, 1e-8], [1e-6, 1e-3, -0.1, -0.0]]))
    total = CrossEntropy(lp_reg=1.0).penalty(model)
    total.backward()
    assert float(total) == pytest.approx(1e-3**0.2 + 0.1**0.2, rel=0.2)
    assert model.weight.grad is not None and float(model.weight.grad.abs().max()) < 1e5
    assert model.weight.grad[0, 0] == model.weight.grad[1, 3] == 0


def test_a_small_lp_penalty_pulls_on_a_network_and_leaves_it_to_be_trained(tmp_path: Path) -> None:
    words = ("--prune_criterion", "EmptyCrit", "--model", "LeNet300", "--limit_train_batches", "20")
    plain, pulled = (launch(tmp_path, *words, *flag) for flag in ((), ("--lp_reg", "1e-6")))
    assert 0 < pulled.rows[0]["penalty/train"] < 1
    assert pulled.rows[1]["loss/train"] == pytest.approx(plain.rows[1]["loss/train"], rel=0.1)
    assert pulled.rows[1]["acc/train"] > 0.5
    sums = [sum(float(p.detach().abs().pow(0.2).sum()) for p in run.network().parameters())
            for run in (pulled, plain)]  # fmt: skip
    assert sums[0] < sums[1]


def test_batches_of_one_sample_train_what_can_be_trained_on_them(tmp_path: Path) -> None:
    small = ("--batch_size", "1", "--prune_criterion", "SNIP")
    result = launch(tmp_path, "--model", "LogisticRegression", *small)
    assert [row["samples"] for row in result.rows] == [3, 6, 6]
    refused = launch(tmp_path, "--model", "LeNet300", *small, code=2)
    assert "LeNet300 cannot be trained" in refused.err and refused.err.count("\n") == 1
    assert len(list((tmp_path / "results").iterdir())) == 1
    assert launch(tmp_path, "--model", "LeNet300", *small, "--epochs", "0").code == 0


# What is shown


def score_plot(folder: Path, scores: list[float], keep: list[bool]) -> Path:
    event = PruneEvent(0.5, 0.5, Keep({"a": torch.tensor(keep)}), {"a": torch.tensor(scores)})
    save_figure(draw_last_scores(event, "title"), folder / "scores.png")
    return folder / "scores.png"


@pytest.mark.parametrize(
    "scores",
    [
        [0.1, 0.2, 0.3],
        [0.0, 0.0, 0.0],  # nothing to put on a logarithmic axis
        [0.5, 0.5, 0.5],
        [math.inf, 0.1, 0.2],
        [math.inf, math.inf, math.inf],
        [-3.0, 0.0, 2.0],  # signed: no logarithm
        [-3.0, -math.inf, 2.0],
        [1e-40, 1e-38, 1e30],
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_scores_can_be_drawn(tmp_path: Path, scores: list[float]) -> None:
    with Image.open(score_plot(tmp_path, scores, [False, True, True])) as picture:
        assert picture.format == "PNG"


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_moves_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "CI", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console = Console("auto")
    assert list(console.track(range(3), "count", 3)) == [0, 1, 2]
    assert "count" in terminal.getvalue()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert terminal.getvalue().count(hide) == terminal.getvalue().count(show) == 1

    outer = iter(console.track(range(3), "outer", 3))
    next(outer)
    inner = iter(console.track(range(3), "inner", 3))
    next(inner)
    console.close()  # as after an error, which holds on to both loops
    assert terminal.getvalue().count(hide) == terminal.getvalue().count(show) == 2
    assert [*inner, *outer] == [1, 2, 1, 2]
    assert list(Console("off").track(range(3), "quiet", 3)) == [0, 1, 2]
    assert "quiet" not in terminal.getvalue()


def test_nothing_but_lines_is_printed_into_a_pipe(place: Path, cut_run: Run) -> None:
    assert "\x1b" not in cut_run.out and "\r" not in cut_run.out
    shown = launch(place, "--prune_criterion", "SNAPit", "--progress", "on")
    assert "\x1b" not in shown.out and "" not in shown.lines
    assert len(shown.lines) == len(cut_run.lines)


def test_progress_in_a_pipe_is_a_line_from_time_to_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.framework.reporting.console.LINE_EVERY", 0.0)
    shown = launch(place, "--prune_criterion", "SNAPit", "--progress", "on", "--epochs", "1")
    for line in ("prune: 1/7", "prune: 6/7", "epoch 1/1: 1/3", "epoch 1/1: 2/3", "evaluate: 1/2"):
        assert line in shown.lines
    assert not [line for line in shown.folder.log.read_text().splitlines() if re.search(r": \d+/\d+$", line)]


def test_names_between_colons_in_a_path_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / ":key: [red]x").mkdir()
    result = launch(tmp_path / ":key: [red]x", "--epochs", "0", "--results_dir", tmp_path / ":key: [red]x" / "r")
    assert result.lines[-1].startswith(str(tmp_path / ":key: [red]x" / "r"))
    assert result.report["train"]["epochs"] == 0


def test_the_table_shows_the_dense_network_beside_the_pruned_one(finished: Run) -> None:
    report = finished.report
    table = {line.split("│")[1].strip(): line.split("│")[2:4] for line in finished.lines if line.startswith("│")}
    assert [part.strip() for part in table["parameters"]] == [
        f"{report['dense']['params']:,}", f"{report['pruned']['params']:,}",
    ]  # fmt: skip
    assert table["test accuracy"][0].strip() == "not trained"
    kind = "node" if report["criterion"] == "SNAPit" else "weight"
    assert f"{kind} sparsity (asked {report['asked_sparsity']:.4f})" in table
    more = {"latency, batch 1", "latency, batch 64", "MACs a sample", "bytes on disk", "training time"}
    assert more <= set(table)


def test_a_run_can_do_without_timing_the_networks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "secateur.framework.reporting.report.measure_latency", lambda *_: pytest.fail("timed all the same")
    )
    run = launch(place, "--prune_criterion", "ChannelNorm", "--no_latency")
    assert run.report["dense"]["latency_ms"] is None and run.report["pruned"]["latency_ms"] is None
    assert "MACs a sample" in run.out and "latency" not in run.out


def test_cross_entropy_is_what_criterions_score_with() -> None:
    outputs, targets = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    assert torch.equal(CrossEntropy()(outputs, targets), F.cross_entropy(outputs, targets))


def test_a_file_from_training_is_plain_safetensors(cut_run: Run) -> None:
    tensors = load_file(cut_run.folder.checkpoint("LeNet5"))
    assert not [name for name in tensors if name.startswith("module.")]


BUDGET = "--model Conv6 --prune_criterion ChannelNorm --schedule before --budget macs --pruning_limit"


@pytest.mark.slow
def test_a_run_meets_its_budget_and_records_the_multiple_it_measured(tmp_path: Path) -> None:
    run = launch(tmp_path, *BUDGET.split(), 0.6, "--round_to", "auto", "--scope", "isomorphic", "--fold")
    dense, pruned = run.report["dense"], run.report["pruned"]
    assert 1 - pruned["macs"] / dense["macs"] == pytest.approx(0.6, abs=0.01)
    assert run.report["budget"] == "macs"
    assert any("MACs a sample (asked 0.4000 of them)" in line for line in run.lines)
    settings = yaml.safe_load(run.folder.config.read_text())
    multiple = int(settings["round_to"])
    sizes = [module.out_channels for module in run.network().modules() if isinstance(module, nn.Conv2d)]
    assert all(size % multiple == 0 for size in sizes)


def test_a_budget_out_of_reach_is_known_before_anything_is_written(tmp_path: Path) -> None:
    run = launch(tmp_path, *BUDGET.split(), 0.9, "--min_channels", 60, code=2)
    assert "budget macs: asked for sparsity 0.9000, at most 0." in run.err
    assert not (tmp_path / "results").exists()


def test_validating_within_an_epoch_without_validation_images_says_it_does_nothing(tmp_path: Path) -> None:
    run = launch(
        tmp_path, "--model", "LeNet300", "--val_share", 0, "--eval_freq", 2, "--prune_criterion", "EmptyCrit"
    )
    assert "no validation images (--val_share 0): --eval_freq has no effect" in run.folder.log.read_text()
