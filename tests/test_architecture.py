"""Imports point one way: main -> framework -> utils; plug-ins use both, and nothing imports plug-ins."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PLUGIN_FOLDERS = ("models", "criterions", "trainers", "testers", "losses")
MAY_IMPORT = {
    "utils": {"utils"},
    "framework": {"framework", "utils"},
    **{folder: {"framework", "utils", folder} for folder in PLUGIN_FOLDERS},
}
HOUSE = {"main", "framework", "utils", "tests", "benchmarks", *PLUGIN_FOLDERS}
MODULES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of our own that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found & HOUSE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    assert imported(path) <= MAY_IMPORT[path.relative_to(ROOT).parts[0]]


def test_the_peer_is_only_used_by_tests_and_benchmarks() -> None:
    assert not [path.name for path in MODULES if "torch_pruning" in path.read_text(encoding="utf-8")]


def test_no_module_bears_the_name_of_a_public_function() -> None:
    import secateur

    assert not {path.stem for path in (ROOT / "framework").glob("*.py")} & set(secateur.__all__)


@pytest.mark.slow
def test_every_module_can_be_imported_first() -> None:
    """One process, in which each module is imported after all of ours were forgotten."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names]
    script = f"""
import importlib, sys
for name in {names!r}:
    for loaded in [m for m in sys.modules if m.split('.')[0] in {sorted(HOUSE)!r}]:
        del sys.modules[loaded]
    importlib.import_module(name)
print("all", len({names!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"all {len(names)}"
