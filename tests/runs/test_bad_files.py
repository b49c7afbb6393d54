"""Files and data sets from elsewhere end a run in one line, before its folder is made."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  # writes a cache when it is first imported
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.framework.storage.run_folder import RunFolder
from tests.runs.test_bad_input import Launch, launch, plugin, refused  # noqa: F401
from tests.utils.files.test_hostile_files import in_time  # noqa: F401

OPTIONS = ("--epochs", "1", "--prune_criterion", "EmptyCrit")
DATA = """
import torch
from secateur.utils.loading.dataset import DataSet

class {name}(DataSet):
    in_channels, num_classes, image_size, mean, std = 1, 10, 28, (0.5,), (0.5,)

    def load(self, train):
        images = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
        labels = torch.arange(40) % 10
        return {part}
"""
PARTS = {
    "FloatImages": ("images / 255, labels", "float32"),
    "FlatImages": ("images.flatten(1), labels", "(40, 784)"),
    "FloatLabels": ("images, labels.float()", "float32 (40,)"),
    "FewLabels": ("images, labels[:7]", "40 images and 7 labels"),
    "LabelsFromOne": ("images, labels + 1", "1..10, not 0..9"),
}


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("name", PARTS)
def test_a_data_set_that_returns_something_else(name: str, launch: Launch, tmp_path: Path) -> None:  # noqa: F811
    part, words = PARTS[name]
    folder = plugin(tmp_path, "utils/data", name, DATA.format(name=name, part=part))
    refused(launch("--plugins", folder, "--data_set", name, *OPTIONS), name, words)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("flag", ["--pretrained", "--checkpoint_name"])
def test_a_named_pipe_in_the_place_of_a_network(flag: str, launch: Launch, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    refused(launch(flag, path, *OPTIONS), f"{path} is a named pipe")


def converted(path: Path, change: Callable[[Tensor], Tensor]) -> None:
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(path))
    save_file({n: change(t) if t.is_floating_point() else t for n, t in tensors.items()}, path, metadata)


@pytest.mark.slow  # six runs
def test_checkpoints_that_were_converted_are_tested_or_refused(launch: Launch, tmp_path: Path) -> None:  # noqa: F811
    first = launch(*OPTIONS)
    assert first.code == 0, first.err
    (made,) = map(RunFolder, Path("results").iterdir())
    name = made.name
    shutil.move(made.path, tmp_path / name)
    run = RunFolder(tmp_path / name)
    file = run.checkpoint("LeNet300")
    good = file.read_bytes()
    converted(file, lambda tensor: tensor.half())
    for flags in (("--eval",), OPTIONS):
        assert launch("--checkpoint_name", run.path, *flags).code == 0
    assert launch("--pretrained", file, *OPTIONS).code == 0
    shutil.rmtree("results")
    changes: list[tuple[Callable[[Tensor], Tensor], str]] = [
        (lambda tensor: tensor.to(torch.float8_e5m2), "torch.float8_e5m2, expected torch.float32"),
        (lambda tensor: tensor * float("nan"), "NaN"),
    ]
    for change, words in changes:
        file.write_bytes(good)
        converted(file, change)
        for more in (("--checkpoint_name", run.path, "--eval"), ("--checkpoint_name", run.path, *OPTIONS),
                     ("--pretrained", file, *OPTIONS)):  # fmt: skip
            result = launch(*more)
            assert (result.code, Path("results").exists()) == (2, False), result.err
            assert str(file) in result.err and words in result.err and result.err.count("\n") == 1


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("kind", ["pipe", "nested", "large"])
def test_settings_beside_a_checkpoint_that_cannot_be_read_are_passed_over(kind: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    if kind == "pipe":
        os.mkfifo(run.config)
    else:
        run.config.write_text("[" * 600 if kind == "nested" else "model: LeNet5\n" + "#" * 2**21)
    assert run.read_config() is None
    run.config.unlink()
    run.config.write_text("model: LeNet5\n")
    assert run.read_config() is not None
