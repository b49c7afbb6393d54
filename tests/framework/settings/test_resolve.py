"""The way from a request to settings: the precedence of the layers, and the plug-ins of presets among them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.settings.run_config import PRESETS
from tests import ROOT

Command = Callable[..., Any]
ORIGINAL = ROOT / "configs" / "snipit_original.yaml"


def chosen(config: Any, preset: str) -> dict[str, str]:
    return {name: getattr(config, name) for name in PRESETS[preset]}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_on_the_command_line_beats_the_values_of_a_file(command: Command, preset: str) -> None:
    result = command("--config", ORIGINAL, f"--{preset}")
    assert result.code == 0, result.err
    assert chosen(result.config, preset) == PRESETS[preset]
    (note,) = (note for note in result.notes if "prune_criterion" in note)
    assert "overriding SNAP of the config file" in note


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_no_recommendation(command: Command, preset: str) -> None:
    result = command(f"--{preset}", "--no_autoconfig")
    assert chosen(result.config, preset) == PRESETS[preset]
    assert sorted(result.notes) == sorted(
        f'preset: {name} = "{plugin}" (--{preset})' for name, plugin in PRESETS[preset].items()
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_a_file_leaves_alone_what_the_file_or_a_flag_says(
    command: Command, preset: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{preset}: true\n")
    assert chosen(command("--config", recipe).config, preset) == PRESETS[preset]
    if preset != "l0":  # which needs no criterion at all
        assert command("--config", recipe, "--prune_criterion", "SNIP").config.prune_criterion == "SNIP"
        recipe.write_text(f"{preset}: true\nprune_criterion: SNIP\n")
        assert command("--config", recipe).config.prune_criterion == "SNIP"


def test_a_preset_on_the_command_line_beats_that_of_a_file(command: Command, tmp_path: Path) -> None:
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


def test_what_a_file_names_stays_where_it_is_of_the_presets_kind(
    command: Command, plugins: Path, tmp_path: Path
) -> None:
    (plugins / "losses").mkdir()
    source = "from secateur.losses.HoyerSquare import HoyerSquare\n\n\nclass Mine(HoyerSquare):\n    pass\n"
    (plugins / "losses" / "Mine.py").write_text(source)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("loss: Mine\nprune_criterion: HoyerSquare\n")
    result = command("--plugins", plugins, "--config", recipe, "--hoyer_square")
    assert (result.config.loss, result.config.prune_criterion) == ("Mine", "HoyerSquare")
    assert result.decisions.source("loss") == "config file"
    assert not [note for note in result.notes if "--hoyer_square" in note]


def test_a_criterion_by_flag_beside_a_preset_by_flag_stays_as_it_was(command: Command) -> None:
    refused = command("--config", ORIGINAL, "--l0", "--prune_criterion", "SNIP")
    assert refused.code == 2 and "--prune_criterion EmptyCrit, not SNIP" in refused.err
    config = command("--config", ORIGINAL, "--hoyer_square", "--prune_criterion", "IMP").config
    assert (config.loss, config.prune_criterion) == ("HoyerSquare", "IMP")


def test_a_method_by_its_number_beats_the_criterion_of_a_file(command: Command) -> None:
    assert command("--config", ORIGINAL, "--pruning_method", "22").config.prune_criterion == "TaylorGate"
    refused = command("--config", ORIGINAL, "--pruning_method", "22", "--prune_criterion", "SNIP")
    assert refused.code == 2 and "give one" in refused.err
