"""The run folder: its name, the copy of the sources, the config that repeats the run, finding old runs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from secateur.framework.settings.decisions import DEFAULT, FILE, Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage import environment, run_folder
from secateur.framework.storage.run_folder import UNSAFE, RunFolder
from secateur.utils.errors import RunError
from tests import ROOT
from tests.command_line import resolved

Make = Callable[..., RunFolder]


def copied(folder: RunFolder) -> set[str]:
    return {path.relative_to(folder.codebase).as_posix() for path in folder.codebase.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- the folder


def test_a_run_folder_has_its_files(make: Make, source: Path) -> None:
    folder = make()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_LeNet5_SNAPit", folder.name)
    assert folder.path.parent == Path("results")
    assert folder.command.read_text() == "python main.py\n"
    for place in (folder.models, folder.plots, folder.tensorboard, folder.log.parent):
        assert place.is_dir() and not list(place.iterdir())
    assert copied(folder) == {
        "main.py",
        "criterions/SNIP.py",
        "utils/data/small.npz",
        "configs/quick.yaml",
        "tests/test_a.py",
    }
    assert folder.checkpoint("VGG16", "best") == folder.path / "models" / "VGG16_best.safetensors"
    assert not folder.report.exists() and not folder.metrics.exists()


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("a/b.c", "a-b-c"),
        ("../../up", "------up"),
        ("C:\\x", "C--x"),
        ("ta\tb\n", "ta-b-"),
        ("", "LeNet5_SNAPit"),
        ("größe_2", "größe_2"),
        ("\udc80", "-"),
        ("~/$HOME *?", "---HOME---"),
        ("/etc", "-etc"),
    ],
)
def test_unsafe_characters_of_a_run_name_become_dashes(make: Make, given_name: str, kept: str) -> None:
    folder = make(run_name=given_name)
    assert folder.name[len("2020-01-01_00-00-00_") :] == kept
    assert folder.path.resolve().parent == Path("results").resolve()


@given(st.text())
def test_no_run_name_leaves_the_results_folder(name: str) -> None:
    cleaned = UNSAFE.sub("-", name)
    assert len(cleaned) == len(name)
    assert not set(cleaned) & set('/\\.\0\n:*?"<>|')


def test_a_long_run_name_is_cut(make: Make) -> None:
    assert make(run_name="ä" * 5000).path.is_dir()


def test_two_runs_in_a_second_get_two_folders(make: Make) -> None:
    names = [make(run_name="same").name for _ in range(4)]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r".{19}_same(_\d)?", name) for name in names)


def test_two_processes_never_get_the_same_folder(tmp_path: Path) -> None:
    code = (
        "from secateur.framework.storage.run_folder import _make_unused; from pathlib import Path\n"
        f"for _ in range(40): print(_make_unused(Path({str(tmp_path)!r}) / 'run').name)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = [name for process in processes for name in process.communicate()[0].split()]
    assert len(names) == 80 and len(set(names)) == 80


def test_a_folder_that_cannot_be_made_is_a_run_error(make: Make) -> None:
    Path("results").write_text("a file")
    with pytest.raises(RunError, match="results"):
        make()


# ---------------------------------------------------------------- codebase/


def test_what_is_no_source_is_not_copied(make: Make, source: Path) -> None:
    left_out = [
        ".git/config",
        ".venv/lib.py",
        "env/pyvenv.cfg",
        "env/lib.py",
        "results/old/file.py",
        "data/big.bin",
        "models/__pycache__/a.pyc",
        ".pytest_cache/a",
        ".mypy_cache/a",
        ".ruff_cache/a",
        ".hypothesis/a",
        "elsewhere/run/command.txt",
        "elsewhere/run/codebase/main.py",
    ]
    kept = [".ci/run", "utils/results/a.py", "models/data/a.py", "run", "elsewhere/notes.txt"]
    for name in left_out + kept:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    found = copied(make())
    assert found.isdisjoint(left_out) and found >= set(kept)


@pytest.mark.parametrize("place", ["out/runs", ".", "criterions"])
def test_the_results_folder_is_left_out_wherever_it_lies(make: Make, source: Path, place: str) -> None:
    first, second = make(results_dir=place), make(results_dir=place)
    assert not any("codebase" in name or "command.txt" in name for name in copied(second))
    assert ("main.py" in copied(second)) and first.path != second.path


def test_files_over_the_limit_are_not_copied(make: Make, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LARGEST_SOURCE", 100)
    (source / "large.bin").write_bytes(b"x" * 101)
    (source / "just.bin").write_bytes(b"x" * 100)
    assert "just.bin" in copied(folder := make()) and "large.bin" not in copied(folder)


def test_links_are_not_followed_out_of_the_tree(make: Make, source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("secret")
    (source / "inside.py").symlink_to("main.py")
    (source / "outside.py").symlink_to(tmp_path / "secret.txt")
    (source / "hidden.py").symlink_to(".git/config")
    (source / "dangling.py").symlink_to("nowhere")
    (source / "loop").symlink_to(".")
    (source / "away").symlink_to(tmp_path)
    os.mkfifo(source / "pipe")
    found = copied(folder := make())
    assert "inside.py" in found and not (folder.codebase / "inside.py").is_symlink()
    assert not {"outside.py", "hidden.py", "dangling.py", "pipe"} & found
    assert not any(name.startswith(("loop", "away")) for name in found)


def test_plugin_folders_are_copied_under_names_of_their_own(make: Make, tmp_path: Path) -> None:
    folders = []
    for parent in ("a", "b"):
        place = tmp_path / parent / "mine" / "losses"
        place.mkdir(parents=True)
        (place / f"Loss{parent}.py").write_text(parent)
        folders.append(str(place.parent))
    folder = make(plugins=tuple(folders))
    assert copied(folder) >= {"plugins/mine/losses/Lossa.py", "plugins/mine_2/losses/Lossb.py"}
    saved = yaml.safe_load(folder.config.read_text())
    assert saved["plugins"] == ["codebase/plugins/mine", "codebase/plugins/mine_2"]


# ---------------------------------------------------------------- config.yaml


def test_a_run_can_be_repeated_from_its_config(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    mine = tmp_path / "mine" / "losses"
    mine.mkdir(parents=True)
    settings = {"epochs": 3, "plugins": (str(mine.parent),), "set": {"criterion": {"p": 2}}, "l2_reg": 1e-5}
    folder = make(**settings)
    monkeypatch.chdir(tmp_path)
    again, decisions = resolved({}, tmp_path / "project" / folder.config)
    assert again.plugins == (str(tmp_path / "project" / folder.codebase / "plugins" / "mine"),)
    assert {**again.to_dict(), "plugins": None} == {**RunConfig(**settings).to_dict(), "plugins": None}
    assert {decisions.source(name) for name in again.to_dict()} == {FILE}


def test_a_repeated_run_keeps_its_plugins_once(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    mine = tmp_path / "mine" / "losses"
    mine.mkdir(parents=True)
    (mine / "Mine.py").write_text("class Mine: pass")
    first = make(plugins=(str(mine.parent),))
    root = first.codebase.resolve()
    monkeypatch.chdir(tmp_path)
    second = RunFolder.create(*resolved({}, root.parent / "config.yaml"), "again", root=root)
    assert copied(second) == copied(RunFolder(root.parent))
    assert yaml.safe_load(second.config.read_text())["plugins"] == ["codebase/plugins/mine"]


def test_the_config_is_written_again_once_choices_are_known(make: Make) -> None:
    folder = make()
    decisions = Decisions()
    config = decisions.choose(RunConfig(epochs=3), "measured", "fastest", memory_format="channels_last", threads=2)
    folder.write_settings(config, decisions)
    assert folder.read_config() == config
    rows = {row["setting"]: row for row in json.loads(folder.decisions.read_text())}
    assert rows["threads"] == {"setting": "threads", "value": 2, "source": "measured", "why": "fastest"}
    assert rows["batch_size"]["source"] == DEFAULT


@pytest.mark.parametrize("text", ["epochs: [", "epoch: 3", "- 1", "", "epochs: many"])
def test_a_damaged_config_of_an_old_run_is_no_config(make: Make, text: str) -> None:
    folder = make()
    folder.config.write_text(text)
    assert folder.read_config() is None


# ---------------------------------------------------------------- environment.json


def test_the_environment_names_versions_machine_and_time(make: Make) -> None:
    found = json.loads(make(device="cpu").environment.read_text())
    assert found["python"].startswith("3.")
    assert found["packages"]["click"] and found["packages"].keys() >= {"torch", "torchvision"}
    assert found["cores"] >= 1 and found["device"] == "cpu" and found["device_name"] == found["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", found["started"])
    assert found["git"] is None


def test_the_commit_is_that_of_the_tree_and_tells_whether_it_was_changed(source: Path) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *names, *arguments], cwd=source, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    assert environment.git_state(source) is None  # nothing committed
    git("add", ".")
    git("commit", "-m", "first")
    assert environment.git_state(source) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (source / "main.py").write_text("changed")
    assert environment.git_state(source) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    copy = source / "results" / "run" / "codebase"
    copy.mkdir(parents=True)
    (copy / "main.py").write_text("")
    assert environment.git_state(copy) is None  # a copy that git does not know


def test_writing_it_again_keeps_the_start_time(make: Make) -> None:
    folder = make()
    before = json.loads(folder.environment.read_text())["started"]
    folder.write_environment(RunConfig(device="cpu"))
    assert json.loads(folder.environment.read_text())["started"] == before
