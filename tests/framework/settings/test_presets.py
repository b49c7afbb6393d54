"""Modes: flags that choose a loss, a criterion and a trainer, beside a config file and without autoconfig."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.presets import MODES

Command = Callable[..., Any]
ORIGINAL = Path(registry._root) / "configs" / "snipit_original.yaml"


def chosen(config: Any, mode: str) -> dict[str, str]:
    return {name: getattr(config, name) for name in MODES[mode]}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_on_the_command_line_beats_the_values_of_a_file(command: Command, mode: str) -> None:
    result = command("--config", ORIGINAL, f"--{mode}")
    assert result.code == 0, result.err
    assert chosen(result.config, mode) == MODES[mode]
    (note,) = (note for note in result.config.notes if "prune_criterion" in note)
    assert "overriding SNAP of the config file" in note


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_no_part_of_autoconfig(command: Command, mode: str) -> None:
    config = command(f"--{mode}", "--no_autoconfig").config
    assert chosen(config, mode) == MODES[mode]
    assert sum("autoconfig" in note for note in config.notes) == 0
    assert sum(f"(--{mode})" in note for note in config.notes) == len(MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_of_a_file_leaves_alone_what_the_file_or_a_flag_says(
    command: Command, mode: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{mode}: true\n")
    assert chosen(command("--config", recipe).config, mode) == MODES[mode]
    if mode != "l0":  # which goes with no criterion at all
        assert command("--config", recipe, "--prune_criterion", "SNIP").config.prune_criterion == "SNIP"
        recipe.write_text(f"{mode}: true\nprune_criterion: SNIP\n")
        assert command("--config", recipe).config.prune_criterion == "SNIP"


def test_a_mode_on_the_command_line_beats_that_of_a_file(command: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hoyer_square: true\nloss: HoyerSquare\n")
    config = command("--config", recipe, "--l0").config
    assert (config.hoyer_square, config.l0, config.loss) == (False, True, "L0CrossEntropy")
    recipe.write_text("group_hoyer_square: true\nloss: GroupHoyerSquare\nprune_criterion: GroupHoyerSquare\n")
    config = command("--config", recipe, "--hoyer_square").config
    assert (config.group_hoyer_square, config.loss, config.prune_criterion) == (
        False,
        "HoyerSquare",
        "HoyerSquare",
    )
    recipe.write_text("hoyer_square: true\nl0: true\n")
    result = command("--config", recipe)
    assert result.code == 2 and "exclude each other" in result.err


def test_what_a_file_names_stays_where_it_is_of_the_modes_kind(
    command: Command, plugins: Path, tmp_path: Path
) -> None:
    (plugins / "losses").mkdir()
    source = "from secateur.losses.HoyerSquare import HoyerSquare\n\n\nclass Mine(HoyerSquare):\n    pass\n"
    (plugins / "losses" / "Mine.py").write_text(source)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("loss: Mine\nprune_criterion: HoyerSquare\n")
    config = command("--plugins", plugins, "--config", recipe, "--hoyer_square").config
    assert (config.loss, config.prune_criterion) == ("Mine", "HoyerSquare")
    assert not [note for note in config.notes if "--hoyer_square" in note]


def test_a_criterion_by_flag_beside_a_mode_by_flag_stays_as_it_was(command: Command) -> None:
    refused = command("--config", ORIGINAL, "--l0", "--prune_criterion", "SNIP")
    assert refused.code == 2 and "--prune_criterion EmptyCrit, not SNIP" in refused.err
    config = command("--config", ORIGINAL, "--hoyer_square", "--prune_criterion", "IMP").config
    assert (config.loss, config.prune_criterion) == ("HoyerSquare", "IMP")


def test_a_method_by_its_number_beats_the_criterion_of_a_file(command: Command) -> None:
    assert command("--config", ORIGINAL, "--pruning_method", "22").config.prune_criterion == "TaylorGate"
    refused = command("--config", ORIGINAL, "--pruning_method", "22", "--prune_criterion", "SNIP")
    assert refused.code == 2 and "give one" in refused.err
