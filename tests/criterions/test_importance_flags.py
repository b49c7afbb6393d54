"""--pruning_method: criterions by the ids of Taylor pruning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.dialects.taylor_pruning import METHODS
from secateur.main import main


def test_every_id_names_a_channel_criterion() -> None:
    assert list(METHODS) == [0, 1, 2, 3, 6, 10, 11, 22, 23, 30, 31, 40, 50]
    assert {registry.get("criterions", name).granularity for name in METHODS.values()} == {"channel"}


@pytest.mark.parametrize(("given", "expected"), METHODS.items())
def test_an_id_is_another_way_to_name_the_criterion(
    command: Callable[..., Any], given: int, expected: str
) -> None:
    result = command("--pruning_method", given)
    assert (result.code, result.config.prune_criterion) == (0, expected)
    assert "pruning_method" not in result.config.to_dict()
    assert f"--pruning_method {given} is {expected}" in result.notes
    assert command("--pruning_method", given, "--prune_criterion", expected).code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--pruning_method", 24], "--pruning_method 24 is unknown (one of 0 TaylorWeight, 1 Rand"),
        (["--pruning_method", -1], "--pruning_method -1 is unknown"),
        (["--pruning_method", "taylor"], "--pruning_method must be an integer, got 'taylor'"),
        (
            ["--pruning_method", 22, "--prune_criterion", "SNIP"],
            "--pruning_method 22 is TaylorGate, but --prune_criterion is SNIP",
        ),
    ],
)
def test_other_ids_and_contradictions_are_refused_in_one_line(
    command: Callable[..., Any], arguments: list[object], expected: str
) -> None:
    result = command(*arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"error: {expected}")


TINY = """
from torch import nn


class Tiny(nn.Sequential):
    def __init__(self, *, in_channels=1, num_classes=10, image_size=28):
        inputs = in_channels * image_size**2
        super().__init__(nn.Flatten(), nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize("name", ["BNTaylor", "BNWeight", "BN", "NvidiaFisher"])
def test_a_network_without_batch_norm_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    (tmp_path / "mine" / "models").mkdir(parents=True)
    (tmp_path / "mine" / "models" / "Tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    code = main(["--plugins", "mine", "--model", "Tiny", "--prune_criterion", name, "--epochs", "3"])
    said = capsys.readouterr().err
    assert (code, said.count("\n"), [one.name for one in tmp_path.iterdir()]) == (2, 1, ["mine"])
    assert said.startswith(f"error: {name} reads the scales of batch norms, and Tiny has none")


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (9, "9 scoring samples are too few for 10 classes"),
        (9000, "9000 balanced scoring samples need 900 training images of every class, class 0 has"),
    ],
)
def test_too_few_images_for_balanced_classes_are_told_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    samples: int,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--prune_criterion", "GraspChannel", "--set", f"criterion.samples={samples}", "--epochs", "3"]
    code = main(["--model", "LeNet5", *options])
    said = capsys.readouterr().err
    assert (code, said.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert said.startswith(f"error: {expected}")
