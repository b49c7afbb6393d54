"""A criterion is one file: what lists, documents, tests and runs criterions finds it without a further change."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

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
    built = run(tree, "-m", "secateur.framework.plugins.docs_table")
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
