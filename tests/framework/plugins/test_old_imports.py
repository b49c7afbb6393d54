"""Plug-ins that import by the names before `secateur`: those that docs taught work, others name the new place."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from secateur import Registry, UsageError, prune
from secateur.framework.plugins.registry import registry
from secateur.main import main
from tests import ROOT

CRITERION = """
import framework
{imports}

class Old(Criterion):
    granularity = "weight"
    data = Data("random", batches=1)
    schedule = framework.Before()

    def score(self, model, batches, loss, groups=None):
        weights = prunable_weights(model)
        with scoring(model):
            gradients, _ = mean_gradients(model, batches, loss, weights)
        return {{name: (weights[name].detach() * gradients[name]).abs() for name in weights}}
"""
TAUGHT = """
from framework import Criterion, Data
from framework.criterion import Batch, Groups, LossFunction, Scores, mean_gradients, scoring, with_groups
from framework.prunable import prunable_weights
from framework.pruning.inputs import input_columns
from framework.lineage import same_network
from framework.schedule import Before, During
"""
OTHERS = {
    "trainers/OldTrainer": """
from framework.trainer import decay_groups
from framework import Trainer
from trainers.DefaultTrainer import DefaultTrainer

class OldTrainer(DefaultTrainer):
    pass
""",
    "testers/OldTester": """
from framework.tester import TestContext
from framework import Tester

class OldTester(Tester):
    def run(self, model, batches, loss):
        return {"old": 1}
""",
    "utils/data/OldData": """
import torch
from utils.dataset import DataSet
from utils.errors import UsageError
from utils.vision import torchvision

class OldData(DataSet):
    in_channels, num_classes, image_size = 1, 3, 28
    mean, std = (0.5,), (0.5,)

    def load(self, train):
        return torch.zeros(60, 1, 28, 28, dtype=torch.uint8), torch.arange(60) % 3
""",
}
OWN = """
from secateur import *
from utils.helper import VALUE

class Theirs(Criterion):
    granularity = "weight"

    def score(self, model, batches, loss, groups=None):
        return {}
"""
SHORT = "--epochs 1 --limit_train_batches 2 --limit_test_batches 2 --no_latency --threads 1 --plot_weights_freq 0"


def write(folder: Path, place: str, name: str, text: str) -> None:
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place / f"{name}.py").write_text(text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """One plug-in of each of four kinds."""
    write(tmp_path / "old", "criterions", "Old", CRITERION.format(imports=TAUGHT))
    for name, text in OTHERS.items():
        write(tmp_path / "old", str(Path(name).parent), Path(name).name, text)
    return tmp_path / "old"


def test_a_run_of_old_plugins_alone(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--model LeNet300 --prune_criterion Old --train_scheme OldTrainer --test_scheme OldTester"
    assert main([*flags.split(), "--data_set", "OldData", "--plugins", str(old), *SHORT.split()]) == 0
    (run,) = Path("results").iterdir()
    report = json.loads((run / "report.json").read_text())
    assert (report["criterion"], report["trainer"]["name"]) == ("Old", "OldTrainer")
    assert registry.get("criterions", "Old").__mro__[1] is secateur.Criterion


def test_their_classes_are_those_of_today_and_no_old_name_stays_imported(old: Path) -> None:
    before = set(sys.modules)
    mine = Registry()
    mine.add_folder(old)
    assert issubclass(mine.get("testers", "OldTester"), secateur.Tester)
    assert issubclass(mine.get("trainers", "OldTrainer"), secateur.DefaultTrainer)
    assert issubclass(mine.get("datasets", "OldData"), secateur.DataSet)
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not new & {"framework", "utils", "trainers", "models"}
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    report = prune(model, mine.get("criterions", "Old")(), 0.5, batches=[(torch.randn(3, 4), torch.arange(3))])
    assert report.reached == 0.5


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from framework.measures import count_macs", "count_macs is now in secateur.framework.network.size"),
        ("from framework.pruning.selection import nothing_of_it", "framework.pruning.selection.nothing_of_it"),
        (
            "import framework.criterion; framework.criterion.Nothing",
            "framework.criterion.Nothing no longer exists",
        ),
        ("from framework.pruning.cutting import cut, shrink", "slicing"),
    ],
)
def test_another_old_name_is_one_line_that_names_the_new_place(line: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, "criterions", "Old", CRITERION.format(imports=TAUGHT + line))
    mine = Registry()
    mine.add_folder(tmp_path)
    with pytest.raises(UsageError) as error:
        mine.get("criterions", "Old")
    text = str(error.value)
    assert words in text and "Old.py" in text and "\n" not in text and "UsageError" not in text


LATE_CRITERION = """
from secateur import Criterion

class Late(Criterion):
    granularity = "weight"

    def score(self, model, batches, loss, groups=None):
        from framework.prunable import prunable_weights
"""
LATE_TRAINER = """
from secateur import DefaultTrainer

class Late(DefaultTrainer):
    def train_step(self, batch):
        import utils.vision
"""


@pytest.mark.parametrize(
    ("folder", "text", "flag"),
    [("criterions", LATE_CRITERION, "--prune_criterion"), ("trainers", LATE_TRAINER, "--train_scheme")],
)
def test_an_old_import_inside_a_function_is_one_line(
    folder: str,
    text: str,
    flag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "old", folder, "Late", text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() not in (ROOT, tmp_path)])
    for name in [name for name in sys.modules if name.split(".")[0] in ("framework", "utils")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["--model", "LeNet300", flag, "Late", "--plugins", "old", *SHORT.split()]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Late.py" in line and "from secateur import" in line


def test_a_users_own_packages_of_these_names_are_theirs(old: Path, tmp_path: Path) -> None:
    write(tmp_path, "utils", "__init__", "MINE = True\n")
    write(tmp_path, "utils", "helper", "VALUE = 3\n")
    write(old, "criterions", "Theirs", OWN)
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
import utils
from secateur import registry
registry.add_folder({str(old)!r})
registry.get("criterions", "Theirs")
import utils.helper
print(utils.MINE, utils.helper.VALUE)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "True 3\n", done.stderr
