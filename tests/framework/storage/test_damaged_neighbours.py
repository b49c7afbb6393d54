"""Whatever other runs have left in results/, a new run looks past it."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.commands.dense_baseline import known_dense_accuracy
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.locate import find_checkpoint, find_folder, find_pretrained
from secateur.framework.storage.run_folder import RunFolder, copy_tree
from secateur.utils.errors import UsageError

HEADER = (2).to_bytes(8, "little") + b"{}"
Make = Callable[..., RunFolder]
DENSE: dict[str, Any] = {"prune_criterion": "EmptyCrit", "epochs": 2, "device": "cpu"}
WANTED: dict[str, Any] = {"epochs": 2, "device": "cpu"}

#: contents of a file that no reader can do anything with
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "cut short": b'{"dense": {"accuracy": 0.',
    "deep": b"[" * 100_000,
    "a circle": b"&a [*a]",
    "a wrong tag": b"epochs: !!timestamp abc",
    "an empty integer": b"epochs: !!int ''",
    "a list": b"[1, 2]",
    "a number": b"3",
    "a text": b'"dense"',
    "null": b"null",
    "latin 1": b"caf\xe9: 1",
    "NUL": b"\0\0\0\0",
    "a lone surrogate": b'{"dense": "\\ud800"}',
    "many digits": b"9" * 5000,
}
REPORTS: dict[str, Any] = {
    "nothing": {},
    "no mapping": {"dense": 0.5},
    "null": {"dense": None},
    "a list": {"dense": ["accuracy"]},
    "no accuracy": {"dense": {"params": 3}},
    "a text": {"dense": {"accuracy": "0.9"}},
    "true": {"dense": {"accuracy": True}},
    "a nested list": {"dense": {"accuracy": [0.9]}},
    "above one": {"dense": {"accuracy": 90}},
    "huge": {"dense": {"accuracy": 10**400}},
    "not a number": {"dense": {"accuracy": float("nan")}},
}
CONFIGS = {
    "epochs of another type": {"epochs": [1]},
    "set of another type": {"set": 3},
    "options of another type": {"set": {"model": [1]}},
    "an unknown setting": {"epochen": 3},
    "a negative count": {"epochs": -1},
    "a huge count": {"batch_size": 10**30},
    "an unknown word": {"scope": "everything"},
    "no key": {"3": 4},
}


def finish(folder: RunFolder, accuracy: Any = 0.75) -> RunFolder:
    folder.models.mkdir(parents=True, exist_ok=True)
    folder.report.write_text(json.dumps({"dense": {"accuracy": accuracy}}))
    (folder.models / "LeNet5_finished.safetensors").write_bytes(HEADER)
    return folder


def damage(file: Path, how: str) -> None:
    file.unlink(missing_ok=True)
    if how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "circle of links":
        file.symlink_to(file)
    elif how == "link to nothing":
        file.symlink_to(file.parent / "nothing")
    elif how == "device":
        file.symlink_to("/dev/zero")
    else:
        file.write_bytes(BROKEN[how])


PLACES = ("folder", "pipe", "circle of links", "link to nothing", "device")


@pytest.fixture
def two(make: Make) -> tuple[RunFolder, RunFolder]:
    """Two finished dense runs; the newer one is to be damaged."""
    older, newer = finish(make(**DENSE)), finish(make(**DENSE), accuracy=0.25)
    older.path = older.path.rename(older.path.with_name("2020-01-01_00-00-00_older"))
    newer.path = newer.path.rename(newer.path.with_name("2021-01-01_00-00-00_newer"))
    return RunFolder(older.path), RunFolder(newer.path)


def skips_the_newer(two: tuple[RunFolder, RunFolder]) -> None:
    """The older run's accuracy is taken, and one note names the damaged file."""
    decisions = Decisions()
    assert known_dense_accuracy(RunConfig(**WANTED), decisions) == 0.75
    skipped = [note for note in decisions.notes if str(two[1].path) in note]
    assert len(skipped) == 1 and skipped[0].startswith("skipped") and "\n" not in skipped[0]
    assert [
        note for note in decisions.notes if note.startswith("dense accuracy from") and str(two[0].path) in note
    ]


@pytest.mark.parametrize("file", ["report", "config"])
@pytest.mark.parametrize("how", [*BROKEN, *PLACES])
def test_a_neighbours_unreadable_file_is_skipped(two: tuple[RunFolder, RunFolder], file: str, how: str) -> None:
    damage(getattr(two[1], file), how)
    skips_the_newer(two)


@pytest.mark.parametrize("case", REPORTS)
def test_a_report_with_other_values_is_skipped(two: tuple[RunFolder, RunFolder], case: str) -> None:
    two[1].report.write_text(json.dumps(REPORTS[case]))
    skips_the_newer(two)


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_with_other_values_is_skipped(two: tuple[RunFolder, RunFolder], case: str) -> None:
    values = json.loads(json.dumps(RunConfig(**DENSE).to_dict())) | CONFIGS[case]
    two[1].config.write_text(json.dumps(values))
    skips_the_newer(two)
    assert two[1].read_config() is None


def test_an_undamaged_neighbour_is_taken_without_another_word(two: tuple[RunFolder, RunFolder]) -> None:
    decisions = Decisions()
    assert known_dense_accuracy(RunConfig(**WANTED), decisions) == 0.25
    assert decisions.notes == [f"dense accuracy from {two[1].path}"]


def test_many_damaged_neighbours_are_one_note(make: Make) -> None:
    for _ in range(5):
        finish(make(**DENSE)).report.write_text("{")
    decisions = Decisions()
    assert known_dense_accuracy(RunConfig(**WANTED), decisions) is None
    assert len(decisions.notes) == 1 and "4 more" in decisions.notes[0]


def models_of(kind: str, folder: Path) -> None:
    """A run folder whose models/ is damaged in one way."""
    folder.mkdir(parents=True)
    models = folder / "models"
    if kind == "a file":
        models.write_bytes(b"")
        return
    if kind == "a circle of links":
        models.symlink_to(models)
        return
    models.mkdir()
    file = models / "LeNet5_finished.safetensors"
    if kind == "a checkpoint that links to nothing":
        file.symlink_to("nothing")
    elif kind == "a checkpoint that is a folder":
        file.mkdir()
    elif kind == "a checkpoint that is a pipe":
        os.mkfifo(file)
    elif kind == "a time far away":
        (models / "VGG16_finished.safetensors").write_bytes(HEADER)
        os.utime(models / "VGG16_finished.safetensors", (2**40, 2**40))


MODELS = ("a file", "a circle of links", "a checkpoint that links to nothing", "a checkpoint that is a folder",
          "a checkpoint that is a pipe", "a time far away", "nothing")  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["2099-01-01_00-00-00_new", "without a stamp"])
def test_the_newest_whole_checkpoint_is_found_beside_damaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    good = RunFolder("results/2021-05-01_10-00-00_a")
    good.models.mkdir(parents=True)
    good.checkpoint("LeNet5").write_bytes(HEADER)
    models_of(kind, Path("results") / name)
    assert find_checkpoint(RunConfig(eval=True)) == good.checkpoint("LeNet5")
    with pytest.raises(UsageError, match="did you mean"):
        find_folder("2021-05-01_10-00-00_b", "results")


LONG = {"a long name": "x" * 5000, "many parts": "a/" * 3000, "a long part": "a/" + "x" * 300,
        "below a file": "/etc/passwd/x"}  # fmt: skip


@pytest.mark.parametrize("case", LONG)
def test_a_path_that_no_file_can_have_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for find in (lambda: find_folder(LONG[case], "results", "--compare_with"),
                 lambda: find_pretrained(LONG[case], "LeNet5")):  # fmt: skip
        with pytest.raises(UsageError, match="no run folder"):
            find()


@contextlib.contextmanager
def without_rights(target: Path, mode: int) -> Iterator[None]:
    """`target` with other rights, in a process that has none of root's; what is above it stays open."""
    changed = {target: mode} | {
        above: 0o755 for above in target.resolve().parents if above.stat().st_mode & 5 != 5
    }
    before = {folder: folder.stat().st_mode & 0o7777 for folder in changed}
    user = os.geteuid()
    for folder, new in changed.items():
        folder.chmod(new)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for folder, old in before.items():
            folder.chmod(old)


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
@pytest.mark.parametrize("mode", [0o000, 0o333, 0o444])
@pytest.mark.parametrize("place", ["results", "run", "models", "config.yaml", "report.json"])
def test_what_this_user_may_not_read_is_left_out(make: Make, mode: int, place: str) -> None:
    run = finish(make(**DENSE))
    results = run.path.parent.resolve()
    target = {"results": results, "run": run.path}.get(place, run.path / place)
    shared: dict[str, Any] = {"results_dir": str(results)}
    config, decisions = RunConfig(**WANTED, **shared), Decisions()
    known_dense_accuracy(config, Decisions())  # what it imports lies where the other user cannot read
    with without_rights(target, mode):
        assert known_dense_accuracy(config, decisions) in (None, 0.75)
        for find in (
            lambda: find_checkpoint(RunConfig(eval=True, **shared)),
            lambda: find_folder("x", str(results)),
            lambda: find_folder(str(run.path), "."),
            lambda: find_pretrained(str(run.path), "LeNet5"),
            lambda: find_pretrained(str(run.checkpoint("LeNet5")), "LeNet5"),
        ):
            try:
                find()
            except UsageError as error:
                assert "\n" not in str(error)
        if place == "results" and mode == 0o333:
            assert (
                decisions.notes and "cannot be read" in decisions.notes[0] and str(results) in decisions.notes[0]
            )


def test_a_snapshot_leaves_out_what_disappears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.py", "b.py", "c.py"):
        (source / name).write_text("1")
    real = shutil.copy2

    def copy(path: Path, target: Path) -> None:
        if path.name == "b.py":
            path.unlink()
        real(path, target)

    monkeypatch.setattr("secateur.framework.storage.run_folder.shutil.copy2", copy)
    copy_tree(source, tmp_path / "target")
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["a.py", "c.py"]


def test_a_snapshot_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.py").write_text("1")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a.py").mkdir()
    (tmp_path / "target" / "a.py" / "a.py").mkdir()
    with pytest.raises(OSError):
        copy_tree(tmp_path / "source", tmp_path / "target")
