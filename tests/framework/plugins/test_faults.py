"""Exceptions of plug-ins that would end the process: a failed run or a usage error that names the plug-in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.plugins.faults import contained
from secateur.framework.plugins.registry import registry
from secateur.main import main
from secateur.utils.errors import RunError

SMALL = (
    "--model LeNet300 --epochs 1 --batch_size 16 --limit_train_batches 2 --limit_test_batches 1 "
    "--threads 1 --plot_weights_freq 0 --prune_criterion UnstructuredRandom"
)
RECURSION = "(lambda f: f(f))(lambda f: f(f))"
ENDS = {
    "sys.exit": "import sys; sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "a BaseException": "raise BaseException('stop\\nhere')",
    "RecursionError": RECURSION,
}
#: of the command line's own library: an exit with code 0, and what it takes for Ctrl-C
CLICKS = {"Exit": "import click; raise click.exceptions.Exit(0)", "Abort": "import click; raise click.Abort"}
CRITERION = """
import torch
from secateur import Criterion
from secateur.framework.network.layers import prunable_weights

{at_import}

class Mine(Criterion):
    granularity = "weight"

    def __init__(self):
        super().__init__()
        {at_init}

    def start(self, model):
        {at_start}

    def observe(self, model, loss):
        {at_observe}

    def score(self, model, batches, loss, groups=None):
        {at_score}
        return {{name: weight.detach().abs() for name, weight in prunable_weights(model).items()}}
"""
OTHERS = {
    "trainers": """
from secateur.trainers.DefaultTrainer import DefaultTrainer

class Mine(DefaultTrainer):
    def train_step(self, batch):
        {end}
""",
    "losses": """
from secateur.framework.training.loss import Loss

class Mine(Loss):
    def __call__(self, outputs, targets):
        {end}
""",
    "models": """
from torch import nn

class Mine(nn.Sequential):
    def __init__(self, *, in_channels, num_classes, image_size):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    def forward(self, inputs):
        {end}
""",
    "datasets": """
from secateur.utils.loading.dataset import DataSet

class Mine(DataSet):
    in_channels, num_classes, image_size, mean, std = 1, 4, 28, (0.1,), (0.3,)

    def load(self, train):
        {end}
""",
}
FOLDERS = {"datasets": "utils/data"}
FLAGS = {"trainers": "--train_scheme", "losses": "--loss", "models": "--model", "datasets": "--data_set"}
Launch = Callable[..., tuple[int, str]]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Launch:
    """Call main.py with a plug-in Mine; returns the exit code and the errors."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(kind: str, text: str, *arguments: str) -> tuple[int, str]:
        file = tmp_path / "mine" / FOLDERS.get(kind, kind) / "Mine.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        code = main([*SMALL.split(), "--plugins", "mine", *arguments])
        return code, capsys.readouterr().err

    return call


def is_one_line(shown: str) -> bool:
    return shown.startswith("error: ") and shown.count("\n") == 1 and len(shown) < 800


def criterion(**ends: str) -> str:
    places = {"at_import": "", "at_init": "pass", "at_start": "pass", "at_observe": "pass", "at_score": "pass"}
    return CRITERION.format(**places | ends)


@pytest.mark.parametrize("place", ["at_import", "at_init", "at_start", "at_score"])
@pytest.mark.parametrize("end", ENDS)
def test_a_criterion_that_ends_the_process_is_refused_before_a_folder_is_made(
    launch: Launch, place: str, end: str
) -> None:
    code, shown = launch("criterions", criterion(**{place: ENDS[end]}), "--prune_criterion", "Mine")
    assert code == 1 and is_one_line(shown) and "Mine" in shown
    assert not Path("results").exists()


@pytest.mark.parametrize("end", ENDS)
def test_a_criterion_that_ends_the_process_in_training_is_a_failed_run(launch: Launch, end: str) -> None:
    code, shown = launch("criterions", criterion(at_observe=ENDS[end]), "--prune_criterion", "Mine")
    assert code == 1 and is_one_line(shown) and "Mine" in shown
    (folder,) = Path("results").iterdir()
    assert not (folder / "report.json").exists()
    assert "error: " in (folder / "output" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("kind", "end"),
    [*((kind, "sys.exit") for kind in OTHERS), *(("trainers", end) for end in ENDS)],
)
def test_other_plugins_that_end_the_process_are_failed_runs(launch: Launch, kind: str, end: str) -> None:
    code, shown = launch(kind, OTHERS[kind].format(end=ENDS[end]), FLAGS[kind], "Mine")
    assert code == 1 and is_one_line(shown) and "Mine" in shown
    assert not list(Path().glob("results/*/report.json"))


@pytest.mark.parametrize("end", CLICKS)
@pytest.mark.parametrize("kind", ["models", "trainers"])
def test_exceptions_of_click_are_failed_runs(launch: Launch, kind: str, end: str) -> None:
    code, shown = launch(kind, OTHERS[kind].format(end=CLICKS[end]), FLAGS[kind], "Mine")
    assert code == (2 if kind == "models" else 1) and is_one_line(shown) and "Mine" in shown
    assert not list(Path().glob("results/*/report.json"))


@pytest.mark.parametrize("end", [*ENDS.values(), "raise ValueError('x')"])
def test_a_loss_that_fails_in_scoring_is_named_and_not_the_criterion(launch: Launch, end: str) -> None:
    code, shown = launch("losses", OTHERS["losses"].format(end=end), "--loss", "Mine", "--prune_criterion", "SNIP")
    assert code == (2 if "ValueError" in end else 1) and is_one_line(shown)
    assert "Mine.py" in shown and "SNIP.py" not in shown and "SNIP.score" in shown
    assert not Path("results").exists()


def test_ctrl_c_is_left_alone() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), contained():
        interrupted()


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), BaseException("a\nb"), RecursionError("deep")])
def test_what_ends_the_process_is_a_run_error_of_one_line(error: BaseException) -> None:
    with pytest.raises(RunError) as found, contained("Mine.score"):
        raise error
    assert "Mine.score" in str(found.value) and type(error).__name__ in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), KeyboardInterrupt()])
def test_everything_else_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as found, contained():
        raise error
    assert found.value is error


def test_files_of_a_kind_are_those_of_its_names() -> None:
    for kind in registry.kinds[:-1]:
        files: dict[str, Any] = registry.files(kind)
        assert sorted(files) == registry.names(kind) and all(file.stem == name for name, file in files.items())
