"""A room imports only rooms below it, and nothing imports plug-ins: the table of ranks of docs/architecture.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

PLUGIN_FOLDERS = ("models", "criterions", "trainers", "testers", "losses")
#: rooms from the bottom to the top; those of one line do not import each other
RANKS = (
    ("utils",),
    ("network", "schedules"),
    ("plugins", "pruning.adapters"),
    ("pruning.channels",),
    ("pruning.scoring", "pruning.surgery"),
    ("settings", "pruning.selection", "pruning.gated_layers"),
    ("training", "compression"),
    ("pruning.steps",),
    ("storage",),
    ("reporting",),
    ("studies",),
    ("api", "commands"),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
#: lines of a file, lines of a function without its docstring, files of a room
LONGEST_FILE, LONGEST_FUNCTION, LARGEST_ROOM = 400, 60, 15
FOLDERS = ("secateur", "framework", "utils", *PLUGIN_FOLDERS)
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """`network.layers` for framework/network/layers.py, `utils.errors` for utils/errors.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("framework", "__init__")) or "framework"


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it: deferred ones and those for type checkers too."""
    return imported_by(parsed(path))


def imported_by(tree: ast.Module) -> Iterator[str]:
    """The same of a tree. Without the name of the package a module would be a second copy: that is an error."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            assert name.split(".")[0] not in {"", "main", *FOLDERS} - {"secateur"}, f"{name} lacks `secateur.`"
            if name.split(".")[0] == "secateur":
                yield name.removeprefix("secateur.").removeprefix("framework.")


def room_of(module: str) -> str:
    """The room of a module; "front" for what `secateur` exports, a folder's name for plug-ins."""
    parts = module.split(".")
    room = ".".join(parts[:2]) if parts[0] == "pruning" else parts[0]
    return room if room in RANK or parts[0] in PLUGIN_FOLDERS else "front"


def wrong_import(room: str, target: str) -> str | None:
    """The sentence that says what is wrong with an import, None for one that is right."""
    if room == target or room in PLUGIN_FOLDERS and target not in PLUGIN_FOLDERS:
        return None
    if target not in RANK:
        return f"{room} may not import {target}"
    if RANK[target] >= RANK[room]:
        return f"{room} may not import {target}, which is not below it"
    return None


HOUSE = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "secateur" and path.name != "__init__.py"]


@pytest.mark.parametrize("path", HOUSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_what_is_below(path: Path) -> None:
    room = room_of(module_of(path))
    targets = {room_of(target) for target in imports(path)}
    if path.is_relative_to(ROOT / "utils" / "data"):  # data sets are plug-ins, beside their helpers
        assert targets <= {"utils", "front"}
        return
    assert not {wrong_import(room, target) for target in targets} - {None}


def test_a_room_is_entered_without_imports() -> None:
    """Those of an `__init__.py` would run before every file of the room, whatever its own rank."""
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent not in (ROOT / "secateur", ROOT / "framework"):
            assert not list(imports(path)), path


def test_the_front_names_no_plugin_but_the_default_trainer() -> None:
    for path in (ROOT / "main.py", *(ROOT / "secateur").glob("*.py")):
        plugins = [name for name in imports(path) if name.split(".")[0] in PLUGIN_FOLDERS]
        assert set(plugins) <= {"trainers.DefaultTrainer.DefaultTrainer"}, path


@pytest.mark.parametrize(
    "line",
    [
        "from utils.errors import UsageError",
        "from framework import Criterion",
        "import framework.network",
        "from ..training import trainer",
        "from . import masks",
        "def late():\n    from criterions.SNIP import SNIP",
        "import main",
    ],
)
def test_an_import_without_the_name_of_the_package_is_found(line: str) -> None:
    with pytest.raises(AssertionError, match="lacks `secateur.`"):
        list(imported_by(ast.parse(line)))


@pytest.mark.parametrize(
    ("room", "target", "words"),
    [
        ("pruning.selection", "training", "pruning.selection may not import training"),
        ("network", "schedules", "network may not import schedules"),
        ("storage", "criterions", "storage may not import criterions"),
        ("utils", "front", "utils may not import front"),
        ("criterions", "trainers", "criterions may not import trainers"),
    ],
)
def test_the_rule_names_both_rooms(room: str, target: str, words: str) -> None:
    assert (wrong_import(room, target) or "").startswith(words)


def files_that_import_each_other(edges: Mapping[str, set[str]]) -> set[str]:
    """Modules from which a way leads back to themselves."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = set(edges[start])
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead |= edges.get(module, set())
        return seen

    return {module for module in edges if module in reachable(module)}


def test_no_file_imports_itself_over_others() -> None:
    modules = {module_of(path): path for path in HOUSE}
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        parents = (name.rpartition(".")[0] for name in imports(path))
        edges[module] = {name for name in {*imports(path), *parents} if name in modules and name != module}
    assert sum(map(len, edges.values())) > 500
    assert not files_that_import_each_other(edges)
    assert files_that_import_each_other({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"b", "c"}


def test_rooms_without_torch() -> None:
    """One process imports all their files, with all that these import."""
    rooms = [ROOT / "framework" / room for room in ("settings", "plugins", "schedules")]
    paths = [path.relative_to(ROOT).with_suffix("") for room in rooms for path in sorted(room.rglob("*.py"))]
    names = [".".join(("secateur", *path.parts)).removesuffix(".__init__") for path in paths]
    script = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    assert not {{"torch", "torchvision", "numpy"}} & sys.modules.keys(), name
print("all", len({names!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, f"all {len(names)}"), done.stderr[-2000:]


def test_nothing_lies_loose_in_framework() -> None:
    assert {path.name for path in (ROOT / "framework").glob("*.py")} == {"__init__.py", "api.py"}
    assert not list((ROOT / "framework" / "pruning").glob("[!_]*.py"))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which for a public one has every argument."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_files_functions_and_rooms_are_small() -> None:
    for path in SOURCES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, path
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert code_lines(node) <= LONGEST_FUNCTION, f"{path}: {node.name}"
    for folder in {path.parent for path in (ROOT / "framework").rglob("*.py")}:
        assert len(list(folder.glob("*.py"))) <= LARGEST_ROOM, folder


def test_every_room_says_what_it_is_for() -> None:
    for folder in {path.parent for path in (ROOT / "framework").rglob("*.py")}:
        text = ast.get_docstring(parsed(folder / "__init__.py")) or ""
        assert 3 <= len(text.splitlines()) <= 8, folder
        if folder != ROOT / "framework":
            start = text.rpartition("Start with `")[2].partition("`")[0]
            assert (folder / start).is_file(), f"{folder}: {start!r}"


def test_the_peer_is_only_used_by_tests_and_benchmarks() -> None:
    assert not [path.name for path in SOURCES if "torch_pruning" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
def test_every_module_can_be_imported_first() -> None:
    """One process, in which each module is imported after all of ours were forgotten."""
    names = [".".join(("secateur", *path.relative_to(ROOT).with_suffix("").parts)) for path in HOUSE]
    script = f"""
import importlib, sys
for name in {names!r}:
    for loaded in [m for m in sys.modules if m.split('.')[0] == 'secateur']:
        del sys.modules[loaded]
    importlib.import_module(name)
print("all", len({names!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"all {len(names)}"
