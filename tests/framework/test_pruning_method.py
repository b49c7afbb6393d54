"""--pruning_method: criterions by the ids of Taylor pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from framework.modes import METHODS
from framework.plugins import registry


def test_every_id_names_a_channel_criterion() -> None:
    assert list(METHODS) == [0, 1, 2, 3, 6, 10, 11, 22, 23, 30, 31, 40, 50]
    assert {registry.get("criterions", name).granularity for name in METHODS.values()} == {"channel"}


@pytest.mark.parametrize(("given", "expected"), METHODS.items())
def test_an_id_is_another_way_to_name_the_criterion(
    command: Callable[..., Any], given: int, expected: str
) -> None:
    result = command("--pruning_method", given)
    assert (result.code, result.config.prune_criterion, result.config.pruning_method) == (0, expected, None)
    assert f"--pruning_method {given} is {expected}" in result.config.notes
    assert command("--pruning_method", given, "--prune_criterion", expected).code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--pruning_method", 24], "--pruning_method 24: no method has this id (one of 0 TaylorWeight, 1 Rand"),
        (["--pruning_method", -1], "--pruning_method -1: no method has this id"),
        (["--pruning_method", "taylor"], "--pruning_method must be an integer, got 'taylor'"),
        (
            ["--pruning_method", 22, "--prune_criterion", "SNIP"],
            "--pruning_method 22 is TaylorGate, and --prune_criterion says SNIP: give one",
        ),
    ],
)
def test_other_ids_and_contradictions_are_refused_in_one_line(
    command: Callable[..., Any], arguments: list[object], expected: str
) -> None:
    result = command(*arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"error: {expected}")


def test_a_run_without_batch_norm_is_refused_before_anything_is_written(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from main import main

    monkeypatch.chdir(tmp_path)
    code = main(["--model", "LeNet300", "--pruning_method", "31", "--epochs", "1", "--limit_train_batches", "1"])
    said = capsys.readouterr().err
    assert (code, said.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert said.startswith("error: BNTaylor reads the scales of batch norms, and LeNet300 has none")
