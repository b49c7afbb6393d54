"""Finding old runs: checkpoints to go on from, pretrained weights, a dense run to compare with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.commands.dense_baseline import finished_dense_runs
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.locate import find_checkpoint, find_pretrained
from secateur.framework.storage.run_folder import RunFolder
from secateur.utils.errors import UsageError

HEADER = (2).to_bytes(8, "little") + b"{}"  # the smallest safetensors file
Make = Callable[..., RunFolder]


def finish(folder: RunFolder, *stems: str) -> RunFolder:
    """Give a run a report and checkpoints."""
    folder.models.mkdir(parents=True, exist_ok=True)
    folder.report.write_text("{}")
    for stem in stems or ("LeNet5_finished",):
        (folder.models / f"{stem}.safetensors").write_bytes(HEADER)
    return folder


def dense_run(config: RunConfig) -> Path | None:
    """The newest finished run of the dense network."""
    return next((folder.path for folder in finished_dense_runs(config, [])), None)


def old_run(name: str, *stems: str, results: str = "results") -> RunFolder:
    return finish(RunFolder(Path(results) / name), *stems)


def test_the_newest_run_with_the_checkpoint_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    newest = old_run("2021-05-01_10-00-00_b")
    old_run("2020-01-01_10-00-00_a")  # written later, but its stamp is older
    old_run("2022-01-01_10-00-00_c", "VGG16_finished")
    assert find_checkpoint(RunConfig(eval=True)) == newest.checkpoint("LeNet5")
    assert find_checkpoint(RunConfig(eval=True)).parent.parent == newest.path


def test_within_a_second_the_later_checkpoint_is_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, suffix in enumerate(("", "_2", "_10")):
        folder = old_run(f"2021-05-01_10-00-00_a{suffix}")
        os.utime(folder.checkpoint("LeNet5"), ns=(10**18 + number, 10**18 + number))
    assert find_checkpoint(RunConfig(eval=True)).parts[1] == "2021-05-01_10-00-00_a_10"


def test_a_checkpoint_is_found_by_folder_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = old_run("mine", "LeNet5_finished", "LeNet5_best")
    there = old_run("mine", results=str(tmp_path / "other"))
    assert find_checkpoint(RunConfig(checkpoint_name="mine")) == here.checkpoint("LeNet5")
    named = RunConfig(checkpoint_name="mine", checkpoint_model="LeNet5_best.safetensors")
    assert find_checkpoint(named) == here.checkpoint("LeNet5", "best")
    assert find_checkpoint(RunConfig(checkpoint_name="other/mine")) == Path("other/mine/models") / (
        there.checkpoint("LeNet5").name
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"checkpoint_name": "mien"}, ["results/mien", "did you mean 'mine'"]),
        (
            {"checkpoint_name": "mine", "checkpoint_model": "LeNet5_bst"},
            ["'LeNet5_best'", "results/mine/models"],
        ),
        ({"checkpoint_name": "mine", "checkpoint_model": "../../secret"}, ["no checkpoint"]),
        (
            {"eval": True, "model": "LeNet50"},
            ["results", "LeNet50_finished", "did you mean 'LeNet5_finished'"],
        ),
        ({"eval": True, "results_dir": "nowhere"}, ["nowhere"]),
    ],
)
def test_a_missing_checkpoint_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old_run("mine", "LeNet5_finished", "LeNet5_best")
    (tmp_path / "secret.safetensors").write_bytes(HEADER)
    with pytest.raises(UsageError) as error:
        find_checkpoint(RunConfig(**settings))
    assert all(part in str(error.value) for part in expected)


def test_pretrained_weights_are_a_file_or_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = old_run("mine", "VGG16_finished")
    file = folder.checkpoint("VGG16")
    assert find_pretrained(str(file), "LeNet5") == file
    assert find_pretrained("results/mine", "VGG16") == find_pretrained("mine", "VGG16") == file
    with pytest.raises(UsageError, match="it has VGG16_finished"):
        find_pretrained("mine", "LeNet5")
    with pytest.raises(UsageError, match="did you mean 'mine'"):
        find_pretrained("mines", "VGG16")


def test_eval_names_the_run_it_took(command: Callable[..., Any]) -> None:
    folder = old_run("2021-05-01_10-00-00_a")
    result = command("--eval")
    assert result.code == 0
    assert f"checkpoint: {folder.checkpoint('LeNet5')} (of the newest run with one)" in result.notes
    assert result.config.checkpoint_name == str(folder.path.resolve())
    assert (result.config.checkpoint_model, result.config.run_name) == ("LeNet5_finished", "eval_LeNet5")


DENSE = {"prune_criterion": "EmptyCrit", "epochs": 2}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prune_criterion": "SNIP", "outer_layer_pruning": True},
        {"pruning_limit": 0.9, "snip_steps": 2},
        {
            "run_name": "x",
            "progress": "off",
            "save_freq": 3,
            "memory_format": "channels_last",
            "threads": 1,
            "train_memory_format": "contiguous",
        },
        {"schedule": "during", "prune_delay": 1, "prune_freq": 1, "scope": "layer", "protect": ("a",)},
        {"set": {"criterion": {"p": 2}}},
        {"set": {"model": {}}},
        {"train_dense": True},
    ],
)
def test_a_dense_run_of_the_same_settings_is_found(make: Make, settings: dict[str, Any]) -> None:
    folder = finish(make(**DENSE))
    assert dense_run(RunConfig(**{"epochs": 2, **settings})) == folder.path


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 3},
        {"seed": 1},
        {"model": "VGG16"},
        {"data_set": "MNIST"},
        {"learning_rate": 1e-3},
        {"set": {"model": {"hidden_dim": 3}}},
        {"hidden_dim": 3},
        {"limit_train_batches": 2},
        {"tuning": True},
        {"pretrained": "x"},
        {"checkpoint_name": "x"},
        {"eval": True},
        {"device": "cuda:0"},
        {"val_share": 0.2},
    ],
)
def test_a_dense_run_of_other_settings_is_not_taken(make: Make, settings: dict[str, Any]) -> None:
    finish(make(**DENSE, device="cpu"))
    assert dense_run(RunConfig(**{"epochs": 2, "device": "cpu", **settings})) is None


def test_runs_that_are_unfinished_pruned_or_damaged_are_not_dense_runs(make: Make) -> None:
    finish(make(**DENSE)).report.unlink()
    finish(make(epochs=2, prune_criterion="SNIP"))
    finish(make(**DENSE)).config.write_text("epochs: [")
    finish(make(**DENSE, checkpoint_name="x"))
    assert dense_run(RunConfig(epochs=2)) is None


def test_an_option_by_its_short_flag_is_the_same_option(make: Make) -> None:
    folder = finish(make(**DENSE, hidden_dim=3))
    assert dense_run(RunConfig(epochs=2, set={"model": {"hidden_dim": 3}})) == folder.path
