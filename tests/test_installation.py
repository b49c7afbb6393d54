"""The wheel, installed into an environment of its own, beside a project that has folders of the same names."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur import __version__
from tests import ROOT

FOLDERS = ("framework", "models", "criterions", "trainers", "testers", "losses", "utils")
SHORT = "--epochs 1 --limit_train_batches 2 --limit_test_batches 2 --no_latency --threads 1 --plot_weights_freq 0"
PRUNE = """
import secateur
from secateur import channel_groups, prune
import framework, models, utils
import torch
from torch import nn

model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 3))
batch = (torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
report = prune(model, "SNAP", 0.5, batches=[batch])
print(secateur.__file__, model[0].out_channels, report.reached, framework.MINE, models.MINE, utils.MINE)
"""
CRITERION = """
from secateur import Criterion, prunable_weights


class Loud(Criterion):
    granularity = "weight"

    def score(self, model, batches, loss, groups=None):
        return {name: weight.detach().abs() for name, weight in prunable_weights(model).items()}
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is made from, so that nothing is left in the source tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("secateur", "tests", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    place = tmp_path_factory.mktemp("archive")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(place)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = place.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution: what is missing there is missing here."""
    place = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(archive), "--no-deps", "--no-build-isolation", "-w", str(place))
    (file,) = place.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel, which sees the packages of this one too."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    names = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=names))
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    scripts = Path(sysconfig.get_path("scripts", "venv", vars=names))
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(scripts / "python"),
        "install",
        "--no-deps",
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return scripts


@pytest.fixture
def run(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command of the environment in a project with folders of the same names as ours."""
    project = tmp_path / "project"
    for name in ("framework", "models", "utils", "tests"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("MINE = True\n")
    (project / "main.py").write_text("raise SystemExit('the main.py of the user')\n")
    (project / "extra" / "criterions").mkdir(parents=True)
    (project / "extra" / "criterions" / "Loud.py").write_text(CRITERION)
    monkeypatch.chdir(project)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def call(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / program), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return call


def test_the_wheel_has_the_packages_under_one_name_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"secateur", f"secateur-{__version__}.dist-info"}
    inside = {name for name in names if name.endswith(".py")}
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    ours = {f"secateur/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert inside == ours | {"secateur/__init__.py", "secateur/__main__.py", "secateur/main.py"}
    data = {"py.typed", "utils/data/fashion_mini.npz"}
    assert {f"secateur/{name}" for name in data} <= set(names)


def test_the_source_distribution_has_no_part_of_the_tests(archive: Path) -> None:
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"setup.py", "pyproject.toml", "main.py", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_a_script_prunes_beside_packages_of_the_same_names(run: Run) -> None:
    Path("script.py").write_text(PRUNE)
    done = run("python", "script.py")
    assert done.returncode == 0, done.stderr
    where, channels, reached, *mine = done.stdout.split()
    assert "site-packages" in where and (int(channels), float(reached)) == (4, 0.5) and mine == ["True"] * 3


@pytest.mark.parametrize("call", ["secateur", "python -m secateur"])
def test_the_command_lists_and_names_itself(run: Run, call: str) -> None:
    program, *rest = call.split()
    done = run(program, *rest, "list", "criterions", "--plugins", "extra")
    assert done.returncode == 0 and "SNAPit" in done.stdout and "Loud" in done.stdout, done.stderr
    usage = run(program, *rest, "--help").stdout
    assert f"Usage: {call} " in usage and "main.py" not in usage
    wrong = run(program, *rest, "--modle", "VGG16")
    assert (wrong.returncode, wrong.stderr) == (2, "error: unknown flag '--modle': did you mean '--model'?\n")


def test_a_run_leaves_a_snapshot_of_the_package_that_repeats_it(run: Run) -> None:
    flags = "--model LeNet5 --prune_criterion Loud --plugins extra"
    done = run("secateur", *flags.split(), *SHORT.split())
    assert done.returncode == 0, done.stderr
    (folder,) = Path("results").iterdir()
    code = folder / "codebase"
    places = {path.name for path in code.iterdir()}
    assert {"main.py", "secateur", "framework", "models", "utils", "plugins"} <= places
    assert (code / "secateur" / "__init__.py").is_file() and "__init__.py" not in places
    assert json.loads((folder / "environment.json").read_text())["secateur"] == __version__
    front = code / "secateur" / "__init__.py"
    front.write_text(front.read_text() + "\nprint('imported', __file__)\n")
    front.write_text(front.read_text().replace(f'"{__version__}"', '"0.0.7"'))
    settings = str(folder / "config.yaml")
    repeated = run("python", str(code / "main.py"), "--config", settings, "--run_name", "again")
    assert repeated.returncode == 0, repeated.stderr
    assert repeated.stdout.splitlines()[0] == f"imported {front.resolve()}"
    (again,) = Path("results").glob("*again")
    assert json.loads((again / "environment.json").read_text())["secateur"] == "0.0.7"  # not that of the wheel
    results = [json.loads((path / "report.json").read_text())["pruned"] for path in (folder, again)]
    assert results[0] == results[1]
