"""Flags by the names they have in another system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from framework.old_flags import NEEDLESS, SWITCHES, VALUES

Command = Callable[..., Any]


@pytest.mark.parametrize("name", SWITCHES)
def test_an_old_switch_does_what_its_name_says_and_names_the_new_one(name: str, command: Command) -> None:
    old = SWITCHES[name]
    criterion = ["--prune_criterion", "SNIP"]  # masks belong to weights
    result = command(f"--{name}", *criterion)
    assert getattr(result.config, old.setting) is old.value
    lines = [line for line in result.config.notes if line.startswith("deprecated")]
    assert len(lines) == 1
    assert f"--{name}" in lines[0]
    assert old.now in lines[0]
    assert getattr(command(old.now, *criterion).config, old.setting) is old.value


def test_old_and_new_flags_that_contradict_each_other_are_refused(command: Command) -> None:
    result = command("--disable_saliency", "--saliency")
    assert result.code == 2
    assert "--disable_saliency and --saliency say different things" in result.err


def test_flags_with_a_value_go_by_their_old_names(command: Command) -> None:
    result = command("--output_dim", "10", "--N", "60000")
    assert result.config.num_classes == 10
    assert [line.split(":")[0] for line in result.config.notes[:2]] == ["deprecated", "--N has no effect"]
    assert {*VALUES, *NEEDLESS} == {"output_dim", "N"}


def test_input_dim_is_the_size_of_the_inputs(command: Command) -> None:
    assert command("--input_dim", "1,32,32").config.image_size == 32
    for wrong in ("28,28", "1,28,32", "1,x,28"):
        assert command("--input_dim", wrong).code == 2
