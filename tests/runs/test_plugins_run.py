"""Plug-ins of users run by name: from a folder, from an installed package, with nothing else to edit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.storage.run_folder import RunFolder
from secateur.main import main
from tests import ROOT
from tests.command_line import FONTS, run_main

SMALL = (
    "--model LeNet300 --epochs 1 --batch_size 16 --limit_train_batches 2 --limit_test_batches 1 "
    "--threads 1 --plot_weights_freq 0"
)
PLUGINS = {
    # fifteen lines, as the README promises
    "criterions/GradNorm.py": '''
import torch
from secateur import Criterion, Data
from secateur.framework.network.preserve import scoring
from secateur.framework.network.layers import prunable_weights

class GradNorm(Criterion):
    """Size of each weight's gradient."""

    granularity = "weight"
    data = Data("random", batches=2)

    def score(self, model, batches, loss, groups=None):
        weights = prunable_weights(model)
        with scoring(model):
            total = sum(loss(model(inputs), targets) for inputs, targets in batches)
            gradients = torch.autograd.grad(total, list(weights.values()))
        return {name: gradient.abs() for name, gradient in zip(weights, gradients)}
''',
    "criterions/SNAPsquared.py": '''
from secateur.criterions.SNAP import SNAP


class SNAPsquared(SNAP):
    """SNAP to a power."""

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__(power=power)
        self.power = power

    def score(self, model, batches, loss, groups=None):
        return {name: score**self.power for name, score in super().score(model, batches, loss, groups).items()}
''',
    "criterions/ThreeTimes.py": '''
from secateur.criterions.SNIP import SNIP
from secateur import Before


class ThreeTimes(SNIP):
    """SNIP in three steps."""

    schedule = Before(steps=3)
''',
    "criterions/EveryEpoch.py": '''
from secateur.criterions.SNIP import SNIP
from secateur import Schedule


class Always(Schedule):
    def plan(self, limit, epochs):
        return {epoch: [limit * (epoch + 1) / epochs] for epoch in range(epochs)}


class EveryEpoch(SNIP):
    """SNIP at the end of every epoch."""

    schedule = Always()
''',
    "criterions/MostlySNIP.py": '''
from secateur.criterions.SNIPit import SNIPit as Base


class MostlySNIP(Base):
    """A shipped criterion under another name."""
''',
    # ten lines
    "trainers/Mixed.py": '''
from secateur.trainers.DefaultTrainer import DefaultTrainer

class Mixed(DefaultTrainer):
    """Trains on each batch and its mirror image."""

    def train_step(self, batch):
        inputs, targets = batch
        return (super().train_step(batch) + super().train_step((inputs.flip(-1), targets))) / 2
''',
    "trainers/Silent.py": '''
from torch.nn.functional import cross_entropy
from secateur.trainers.DefaultTrainer import DefaultTrainer

class Silent(DefaultTrainer):
    """Records no metrics of its own."""

    def train_step(self, batch):
        return cross_entropy(self.model(batch[0]), batch[1])
''',
    "models/Tiny.py": '''
from torch import nn


class Tiny(nn.Sequential):
    """Two layers."""

    def __init__(self, *, in_channels, num_classes, image_size, width=12):
        inputs = in_channels * image_size**2
        super().__init__(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, num_classes))
''',
    "models/Curious.py": '''
import torch
from torch import nn


class Curious(nn.Module):
    """Reads values of its tensors while it is made, as networks with stochastic depth do."""

    def __init__(self, *, in_channels, num_classes, image_size):
        super().__init__()
        width = sum(int(share.item() > 0) for share in torch.linspace(0, 1, 9))
        self.first = nn.Linear(in_channels * image_size**2, width)
        self.last = nn.Linear(width, num_classes)

    def forward(self, inputs):
        return self.last(self.first(inputs.flatten(1)).relu())
''',
    "losses/Hinge.py": '''
from torch.nn.functional import multi_margin_loss
from secateur.framework.training.loss import Loss


class Hinge(Loss):
    """Multi-class hinge loss."""

    def __init__(self, *, margin: float = 1.0) -> None:
        super().__init__(margin=margin)
        self.margin = margin

    def __call__(self, outputs, targets):
        return multi_margin_loss(outputs, targets, margin=self.margin)
''',
    "testers/Confusion.py": '''
import torch
from secateur.framework.training.tester import Tester


class Confusion(Tester):
    """How often each class is taken for each."""

    def run(self, model, batches, loss):
        table = torch.zeros(10, 10, dtype=torch.int64)
        with torch.no_grad():
            for inputs, targets in batches:
                for true, guess in zip(targets.tolist(), model(inputs).argmax(1).tolist()):
                    table[true, guess] += 1
        return {"confusion": table.tolist()}
''',
    "utils/data/Stripes.py": '''
import torch
from secateur.utils.loading.dataset import DataSet


class Stripes(DataSet):
    """Images with a bright row whose place is the class."""

    in_channels = 2
    num_classes = 4
    image_size = 28
    mean = (0.1, 0.1)
    std = (0.3, 0.3)

    def load(self, train):
        targets = torch.arange(200 if train else 50) % 4
        images = torch.zeros(len(targets), 2, 28, 28, dtype=torch.uint8)
        for image, target in zip(images, targets):
            image[:, 5 * int(target) + 3] = 255
        return images, targets
''',
}


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RunFolder, str]]:
    """Call main.py with the plug-ins above in a folder "mine"."""
    monkeypatch.chdir(tmp_path)
    for name, text in PLUGINS.items():
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def call(*arguments: object, plots: bool = False) -> tuple[RunFolder, str]:
        run = run_main(tmp_path, *SMALL.split(), "--plugins", "mine", *arguments, plots=plots)
        assert run.code == 0, run.err
        return run.folder, run.out

    return call


Launch = Callable[..., tuple[RunFolder, str]]


def report(folder: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.report.read_text())
    return found


def test_the_criterion_is_as_short_as_promised() -> None:
    lines = [line for line in PLUGINS["criterions/GradNorm.py"].splitlines() if line.strip()]
    assert len(lines) <= 15
    assert len([line for line in PLUGINS["trainers/Mixed.py"].splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize(
    ("name", "kind"),
    [("GradNorm", "weight_sparsity"), ("SNAPsquared", "node_sparsity"), ("MostlySNIP", "weight_sparsity")],
)
def test_a_criterion_in_a_folder_runs_by_name(launch: Launch, name: str, kind: str) -> None:
    folder, out = launch("--prune_criterion", name, "--pruning_limit", "0.7")
    assert report(folder)["reached"][kind] == pytest.approx(0.7, abs=0.002)
    assert (folder.codebase / "plugins" / "mine" / "criterions" / f"{name}.py").is_file()
    shipped = kind == "node_sparsity"
    assert f"outer_layer_pruning = {'false' if shipped else 'true'} ({name}" in out


def test_an_option_of_a_plugin_reaches_it(launch: Launch) -> None:
    one, two = (
        launch("--prune_criterion", "SNAPsquared", "--set", f"criterion.power={power}")[0] for power in (2, -1)
    )
    assert one.checkpoint("LeNet300").read_bytes() != two.checkpoint("LeNet300").read_bytes()
    plain, _ = launch("--prune_criterion", "SNAP")  # the order of squares is the order of sizes
    assert one.checkpoint("LeNet300").read_bytes() == plain.checkpoint("LeNet300").read_bytes()


def test_the_steps_of_a_plugin_are_its_own_unless_the_user_says_otherwise(launch: Launch) -> None:
    folder, out = launch("--prune_criterion", "ThreeTimes")
    assert out.count("pruned weights to") == 3
    again, out = launch("--config", folder.config, "--plugins", "mine")
    assert out.count("pruned weights to") == 3
    assert again.checkpoint("LeNet300").read_bytes() == folder.checkpoint("LeNet300").read_bytes()
    assert launch("--prune_criterion", "ThreeTimes", "--snip_steps", "2")[1].count("pruned weights to") == 4


def test_a_schedule_of_a_plugins_own_is_followed_and_can_be_repeated(launch: Launch) -> None:
    folder, out = launch("--prune_criterion", "EveryEpoch", "--epochs", "2")
    assert out.count("pruned weights to") == 2
    again, _ = launch("--config", folder.config, "--epochs", "2")
    assert again.checkpoint("LeNet300").read_bytes() == folder.checkpoint("LeNet300").read_bytes()


def test_a_trainer_that_overrides_one_step_runs_by_name(launch: Launch) -> None:
    mixed, _ = launch("--train_scheme", "Mixed")
    plain, _ = launch()
    assert report(mixed)["reached"] == report(plain)["reached"]
    assert mixed.checkpoint("LeNet300").read_bytes() != plain.checkpoint("LeNet300").read_bytes()


def test_a_trainer_that_records_nothing_still_gets_its_plots_and_report(launch: Launch) -> None:
    folder, out = launch("--train_scheme", "Silent", "--prune_criterion", "EmptyCrit", plots=True)
    assert (folder.plots / "curves.png").is_file()
    assert report(folder)["train"]["epochs"] == 1
    assert "val acc" in out
    bare, _ = launch("--train_scheme", "Silent", "--prune_criterion", "EmptyCrit", "--val_share", "0", plots=True)
    assert (bare.plots / "curves.png").is_file()
    assert bare.checkpoint("LeNet300").is_file()


@pytest.mark.parametrize("model", ["Tiny", "Curious"])
def test_a_network_is_pruned_measured_and_tested(launch: Launch, model: str) -> None:
    folder, _ = launch("--model", model, "--prune_criterion", "SNAP")
    found = report(folder)
    assert found["reached"]["node_sparsity"] == pytest.approx(0.5, abs=0.1)
    assert found["dense"]["params"] > found["pruned"]["params"]
    tested, _ = launch("--eval", "--model", model)
    assert report(tested)["accuracy"] == found["pruned"]["accuracy"]


def test_a_network_that_reads_its_tensors_is_measured_against_its_dense_self(launch: Launch) -> None:
    found = report(launch("--model", "Curious", "--prune_criterion", "SNAP")[0])
    assert found["dense"]["params"] == 8 * 785 + 10 * 9
    assert found["dense"]["params"] > found["pruned"]["params"]


def test_options_of_a_network_are_remembered_by_its_checkpoint(launch: Launch) -> None:
    folder, _ = launch("--model", "Tiny", "--set", "model.width=40", "--prune_criterion", "SNAP")
    assert report(folder)["dense"]["params"] == 40 * 785 + 410
    tested, _ = launch("--eval", "--model", "Tiny")
    assert report(tested)["accuracy"] == report(folder)["pruned"]["accuracy"]


def test_loss_tester_and_data_set_run_by_name(launch: Launch) -> None:
    folder, _ = launch("--loss", "Hinge", "--set", "loss.margin=2", "--data_set", "Stripes", "--epochs", "2")
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert 0 < rows[0]["loss/train"] < 100
    assert report(folder)["data_set"] == "Stripes"
    assert report(folder)["dense"]["params"] == 300 * (2 * 784 + 1) + 600 + 100 * 301 + 200 + 4 * 101
    plain, _ = launch("--prune_criterion", "SNAP")
    tested, out = launch("--eval", "--checkpoint_name", plain.name, "--test_scheme", "Confusion")
    assert sum(map(sum, report(tested)["confusion"])) == 16
    assert "confusion: " in out


def test_list_shows_what_the_folder_has(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "criterions", "--plugins", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "GradNorm" in shown and "Size of each weight's gradient." in shown


PACKAGE = """
from pathlib import Path

from secateur import hookimpl


@hookimpl
def plugin_folders():
    return [Path(__file__).parent / "their_plugins"]


@hookimpl
def batch_ended(trainer, loss):
    print(f"heard batch {trainer.progress.step} {loss.dim()}")


@hookimpl
def training_ended(trainer):
    print("heard the end")
"""


def installed(tmp_path: Path, text: str) -> Path:
    """A package as pip would leave it, with a `secateur` entry point; returns the folder it is installed in."""
    site = tmp_path / "site"
    folder = site / "their_plugins" / "criterions"
    folder.mkdir(parents=True)
    (folder / "Theirs.py").write_text(PLUGINS["criterions/GradNorm.py"].replace("GradNorm", "Theirs"))
    (site / "their_package.py").write_text(text)
    facts = site / "their_package-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[secateur]\ntheirs = their_package\n")
    return site


def python(tmp_path: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": FONTS}
    settings["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    (tmp_path / "here").mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "main.py"), *SMALL.split(), *arguments]
    here = tmp_path / "here"
    return subprocess.run(command, cwd=here, env=settings, capture_output=True, text=True, check=False)


def test_an_installed_package_adds_criterions_and_listens(tmp_path: Path) -> None:
    site = installed(tmp_path, PACKAGE)
    done = python(tmp_path, site, "--prune_criterion", "Theirs")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("heard")] == [
        "heard batch 1 0", "heard batch 2 0", "heard the end",
    ]  # fmt: skip
    folder = RunFolder(tmp_path / "here" / lines[-1])
    assert report(folder)["reached"]["weight_sparsity"] == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("batch_ended(trainer, loss)", "batch_ended(trainer, losses)", "losses"),
        ("from pathlib", "import nothing_like_this\nfrom pathlib", "nothing_like_this"),
        ('"their_plugins"]', '"nowhere"]', "nowhere"),
    ],
)
def test_a_broken_package_is_refused_by_its_name(tmp_path: Path, old: str, new: str, expected: str) -> None:
    site = installed(tmp_path, PACKAGE.replace(old, new))
    done = python(tmp_path, site, "--prune_criterion", "SNAP")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "their-package" in done.stderr and expected in done.stderr
    assert list((tmp_path / "here").iterdir()) == []
