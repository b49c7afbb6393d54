"""The facts of the flags are complete and agree, and only one file of the core names plug-ins."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from secateur.framework.plugins.registry import FOLDERS, registry
from secateur.framework.settings.attacks import NORMS
from secateur.framework.settings.dialects.discovery import BARE, OTHER_PROGRAMS
from secateur.framework.settings.field import Flag
from secateur.framework.settings.oracle_config import STUDY_FLAGS
from secateur.framework.settings.run_config import FLAGS
from tests import ROOT

OURS = FLAGS | STUDY_FLAGS
ALL = {f"{name} of {program}": flag for program, flags in (("ours", OURS), ("others", OTHER_PROGRAMS))
       for name, flag in flags.items()}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_flag_has_a_type_a_section_and_a_help(name: str) -> None:
    flag = ALL[name]
    assert flag.type in (str, int, float, bool, dict) and flag.group
    assert flag.help or flag.name not in OURS, "flags of other programs may be hidden"
    assert flag.help == flag.help.strip() and "\n" not in flag.help
    assert not flag.choices or flag.type is str
    limits = [limit for limit in (flag.low, flag.high, flag.above, flag.below) if limit is not None]
    assert not limits or flag.type in (int, float)
    assert flag.low is None or flag.above is None
    assert flag.high is None or flag.below is None
    if flag.type is not dict:
        flag.limits()
    assert not (flag.preset or flag.tests) or flag.default in (False, None, ())


def test_no_two_flags_have_the_same_spelling() -> None:
    def spellings(flag: Flag) -> list[str]:
        switched_off = [f"no_{flag.name}"] if flag.type is bool and flag.name in OURS else []
        return [flag.name, *switched_off]

    found = Counter(word for flag in (*OURS.values(), *OTHER_PROGRAMS.values()) for word in spellings(flag))
    assert {word: count for word, count in found.items() if count > 1} == {}
    assert all(word.isidentifier() for word in found)
    assert BARE.keys() <= FLAGS.keys()


#: a norm of attacks has the name of a criterion
PLUGINS = {name for kind in FOLDERS for name in registry.names(kind)} - set(NORMS)
NAMING = ("framework/settings/groups/what.py", "framework/settings/dialects/")
CORE = [path for path in (ROOT / "main.py", *sorted((ROOT / "framework").rglob("*.py")))
        if not path.relative_to(ROOT).as_posix().startswith(NAMING)]  # fmt: skip


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_file_of_the_core_names_a_plugin(path: Path) -> None:
    constants = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Constant)]
    named = {node.lineno: node.value for node in constants if node.value in PLUGINS}
    assert named == {}


def test_a_plugin_that_is_named_would_be_found() -> None:
    what = ast.walk(ast.parse((ROOT / NAMING[0]).read_bytes()))
    assert {"SNAPit", "LeNet5", "L0Trainer"} <= {n.value for n in what if isinstance(n, ast.Constant)} & PLUGINS


def test_a_flag_is_named_in_at_most_four_places() -> None:
    """The table of docs/architecture.md is true: no file of the command line but the two of a flag names it."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `--(\w+)` \|(.*)\|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == ["prune_per_iteration", "l1_reg", "keep_share"]
    for name, cells in rows:
        places = re.findall(r"`([\w.]+)` in `([\w/.]+)`", cells)
        assert len(places) == len(cells.split("|")) == 4
        for word, file in places:
            assert word in (ROOT / file).read_text(encoding="utf-8"), (word, file)
        naming = {path.relative_to(ROOT).as_posix() for folder in ("settings", "commands")
                  for path in (ROOT / "framework" / folder).rglob("*.py")
                  if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))}  # fmt: skip
        dialects = {file for file in naming if file.startswith("framework/settings/dialects/")}
        assert naming - dialects <= {file for _, file in places}, name
