"""A criterion is one file: what lists, documents, tests and runs criterions finds it without a further change."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import criterions_table
from secateur.framework.plugins.registry import registry
from tests import ROOT
from tests.command_line import run_main

COPIED = (
    *("secateur", "framework", "models", "criterions", "trainers", "testers", "losses", "utils"),
    *("tests", "benchmarks", "docs", "configs", "main.py", "README.md", "CONTRIBUTING.md", "pyproject.toml"),
)
CRITERION = '''
from torch import Tensor

from secateur import Before, Data, WeightCriterion


class RootOfGradient(WeightCriterion):
    """|w| * sqrt(|g|), once before training."""

    schedule = Before()
    data = Data("random", batches=2)
    paper = "arXiv:1234.56789"

    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """Return |w| * sqrt(|g|)."""
        return weight.abs() * gradient.abs().sqrt()
'''
SHORT = "--epochs 1 --limit_train_batches 2 --limit_test_batches 2 --no_latency --threads 1 --plot_weights_freq 0"
PYTEST = ("-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider")


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in the tree, whose package it imports."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "XDG_CACHE_HOME": str(tree / "cache")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree with one more file."""
    tree = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    (tree / "criterions" / "RootOfGradient.py").write_text(CRITERION, encoding="utf-8")
    return tree


def test_it_is_listed(tree: Path) -> None:
    (line,) = [line for line in run(tree, "main.py", "list", "criterions").stdout.splitlines() if "RootOf" in line]
    assert line.split() == [
        *("RootOfGradient", "|w|", "*", "sqrt(|g|),", "once", "before", "training."),
        *("weight", "before", "arXiv:1234.56789"),
    ]


def test_the_docs_are_built_with_it(tree: Path) -> None:
    stale = run(tree, *PYTEST, "tests/docs/test_criterions_page.py")
    assert stale.returncode == 1 and "run `make docs`" in stale.stdout
    built = run(tree, "-m", "docs.criterions_table")
    assert built.returncode == 0, built.stderr
    page = (tree / "docs" / "criterions.md").read_text(encoding="utf-8")
    assert (
        "| RootOfGradient | \\|w\\| * sqrt(\\|g\\|), once before training | weight | global | before "
        "| 2 random batches |  | [1234.56789](https://arxiv.org/abs/1234.56789) |\n"
    ) in page


def test_the_tests_of_every_criterion_include_it(tree: Path) -> None:
    files = [f"tests/criterions/{name}.py" for name in ("test_criterions", "test_every_criterion")]
    done = run(tree, *PYTEST, "-k", "RootOfGradient", *files)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 10


def test_a_run_prunes_by_it(tree: Path) -> None:
    words = "--model LeNet300 --prune_criterion RootOfGradient --pruning_limit 0.9"
    done = run(tree, "main.py", *words.split(), *SHORT.split())
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tree / done.stdout.split()[-1] / "report.json").read_text(encoding="utf-8"))
    assert report["criterion"] == "RootOfGradient"
    assert report["reached"]["weight_sparsity"] == pytest.approx(0.9, abs=1e-4)


#: name -> base class, granularity, and the formula
TEMPLATES = {
    "OwnWeight": (
        "WeightCriterion",
        "weight",
        "formula(self, weight, gradient, loss)",
        "(weight * gradient).square()",
    ),
    "OwnGate": ("GateCriterion", "channel", "formula(self, gradient)", "gradient.abs()"),
    "OwnActivation": (
        "ActivationCriterion",
        "channel",
        "formula(self, activation, gradient)",
        "activation.square() * gradient",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_formula_in_a_folder_of_plug_ins_is_listed_documented_and_run(name: str, tmp_path: Path) -> None:
    base, granularity, method, formula = TEMPLATES[name]
    file = tmp_path / "mine" / "criterions" / f"{name}.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"from secateur import Before, Data, {base}\n\n\n"
        f"class {name}({base}):\n"
        f'    """The formula of a user."""\n\n'
        "    schedule = Before()\n"
        '    data = Data("random", batches=2)\n'
        '    paper = "arXiv:1234.56789"\n'
        '    recommended = {"batch_size": 20}\n\n'
        f"    def {method}:\n        return {formula}\n",
        encoding="utf-8",
    )
    listed = run_main(tmp_path, "list", "criterions", "--plugins", "mine")
    (line,) = [line for line in listed.lines if name in line]
    assert line.split() == [name, "The", "formula", "of", "a", "user.", granularity, "before", "arXiv:1234.56789"]

    flags = f"--model LeNet5 --plugins mine --prune_criterion {name} --pruning_limit 0.5"
    done = run_main(tmp_path, *flags.split(), *SHORT.split())
    assert done.code == 0, done.err
    assert done.report["criterion"] == name and done.config["batch_size"] == 20
    sparsity = "weight_sparsity" if granularity == "weight" else "node_sparsity"
    assert done.report["reached"][sparsity] == pytest.approx(0.5, abs=0.01)

    page = tmp_path / "page.md"
    page.write_text(criterions_table.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    registry.add_folder(tmp_path / "mine")
    criterions_table.main(page)
    assert (
        f"| {name} | The formula of a user | {granularity} | global | before | 2 random batches "
        "| `--batch_size 20` | [1234.56789](https://arxiv.org/abs/1234.56789) |\n"
    ) in page.read_text(encoding="utf-8")
