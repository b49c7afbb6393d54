"""`python main.py list`: tables of plug-ins, read without importing them."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.plugins.registry import registry
from secateur.framework.training import hooks

Command = Callable[..., Any]
IMPLEMENT = "from secateur.framework.training.hooks import hookimpl\n@hookimpl\n"


def lines_of(text: str, name: str) -> list[str]:
    return [line for line in text.splitlines() if line.split()[:1] == [name]]


def test_all_kinds_are_listed_without_a_kind(command: Command) -> None:
    result = command("list")
    assert result.code == 0
    for kind in registry.kinds:
        assert kind in result.out.splitlines()
        for name in registry.names(kind):
            assert lines_of(result.out, name)


def test_a_criterion_shows_summary_granularity_moment_and_paper(command: Command) -> None:
    out = command("list", "criterions").out
    (row,) = lines_of(out, "SNIP")
    assert row.split()[-3:] == ["weight", "before", "arXiv:1810.02340"]
    assert registry.describe("criterions", "SNIP").summary in row
    assert lines_of(out, "name")[0].split() == ["name", "summary", "granularity", "when", "paper"]
    assert not lines_of(out, "VGG16")


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("model", "models"),
        ("criterion", "criterions"),
        ("loss", "losses"),
        ("data_set", "datasets"),
        ("Optimizers", "optimizers"),
        ("tester", "testers"),
    ],
)
def test_a_kind_may_be_singular(command: Command, word: str, kind: str) -> None:
    result = command("list", word)
    assert result.code == 0 and result.out.splitlines()[0] == kind


def test_plugins_are_shown_wherever_the_flag_stands(command: Command, plugins: Path) -> None:
    for arguments in (
        ("--plugins", plugins, "list", "criterions"),
        ("list", "criterions", "--plugins", plugins),
    ):
        (row,) = lines_of(command(*arguments).out, "ByChannel")
        assert row.split()[1:] == ["Made", "up,", "by", "channel.", "channel", "during", "arXiv:0000.00000"]


def test_two_folders_may_be_given(command: Command, plugins: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "losses"
    other.mkdir(parents=True)
    (other / "Mine.py").write_text('class Mine:\n    """A [bold] loss."""\n')
    result = command("--plugins", plugins, "list", "--plugins", other.parent)
    assert lines_of(result.out, "ByWeight") and "A [bold] loss." in lines_of(result.out, "Mine")[0]


def test_a_broken_plugin_is_refused_by_its_file(command: Command, plugins: Path) -> None:
    (plugins / "models" / "Torn.py").write_text("class Torn(:\n")
    result = command("list", "--plugins", plugins)
    assert result.code == 2 and "Torn.py is not valid Python" in result.err and result.err.count("\n") == 1


def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, name: str = "made_up") -> None:
    """Pretend that a package with a `secateur` entry point is installed."""
    (tmp_path / f"{name}.py").write_text(source)
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[secateur]\nmade = {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def test_an_installed_package_adds_its_folders(
    command: Command, plugins: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = IMPLEMENT + f"def plugin_folders(): return [{str(plugins)!r}]"
    install(monkeypatch, tmp_path, source, "adds_folders")
    assert lines_of(command("list", "models").out, "WideNet")
    assert command("--model", "WideNet").config.model == "WideNet"


def test_one_folder_need_not_be_in_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = IMPLEMENT + "def plugin_folders(): return '/some/folder'"
    install(monkeypatch, tmp_path, source, "adds_one")
    assert hooks.installed_folders() == [("adds_one-package", Path("/some/folder"))]


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("raises", "raise RuntimeError('no\\nway')", "RuntimeError: no way"),
        ("torn", "def (", "SyntaxError"),
        ("wrong_argument", IMPLEMENT + "def plugin_folders(place): return []", "place"),
        ("missing_folder", IMPLEMENT + "def plugin_folders(): return ['/no/such']", "/no/such"),
    ],
)
def test_a_broken_package_is_one_line_that_names_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, source: str, why: str
) -> None:
    install(monkeypatch, tmp_path, source, name)
    result = command("list")
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"{name}-package" in result.err and why in result.err


def test_a_broken_package_is_named_when_its_hooks_are_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "raise RuntimeError('no')", "raises_too")
    with pytest.raises(ValueError, match="raises_too-package"):
        hooks.manager(installed=True)
