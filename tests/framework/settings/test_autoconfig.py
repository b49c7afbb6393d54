"""Autoconfig fills what follows from other settings, never what the user gave, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.autoconfig import SHIPPED, fill, load_rules
from secateur.framework.settings.run_config import RunConfig
from secateur.utils.errors import UsageError

Command = Callable[..., Any]


def write_rules(folder: Path, *rules: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "autoconfig.json").write_text(json.dumps(rules))
    return folder


@pytest.mark.parametrize("criterion", registry.names("criterions"))
def test_outer_layers_are_pruned_by_weight_criterions_and_kept_by_channel_ones(criterion: str) -> None:
    config = RunConfig(prune_criterion=criterion)
    fills = fill(config)
    (filled,) = (one for one in fills if one.field == "outer_layer_pruning")
    needed = registry.describe("criterions", criterion).trainer
    assert [one.value for one in fills if one.field == "train_scheme"] == ([needed] if needed else [])
    wanted = registry.describe("criterions", criterion).granularity != "channel" and criterion != "EmptyCrit"
    assert config.outer_layer_pruning is wanted
    assert filled.value == wanted
    assert "2009.11839" in registry.describe("criterions", criterion).paper or len(fills) == 1 + bool(needed)
    assert criterion in filled.why


def test_what_was_filled_is_said_in_one_line(command: Command) -> None:
    config = command("--prune_criterion", "SNIP").config
    assert config.notes == ["autoconfig: outer_layer_pruning = true (SNIP ranks single weights)"]


def test_what_the_user_gave_stays(command: Command) -> None:
    config = command("--prune_criterion", "SNIP", "--no_outer_layer_pruning").config
    assert config.outer_layer_pruning is False and config.notes == []


def test_what_a_config_file_gave_stays(command: Command, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("prune_criterion: SNIP\nouter_layer_pruning: false\n")
    assert command("--config", tmp_path / "recipe.yaml").config.outer_layer_pruning is False


def test_no_autoconfig_turns_it_off(command: Command) -> None:
    config = command("--prune_criterion", "SNIP", "--no_autoconfig").config
    assert config.outer_layer_pruning is False and config.notes == []


def test_a_plugin_that_inherits_its_granularity_is_understood(plugins: Path, command: Command) -> None:
    source = "from secateur.criterions.SNIP import SNIP as Base\n\nclass Heir(Base):\n    pass\n"
    (plugins / "criterions" / "Heir.py").write_text(source)
    assert command("--plugins", plugins, "--prune_criterion", "Heir").config.outer_layer_pruning is True


def test_rules_of_a_plugins_folder_go_first(plugins: Path, command: Command) -> None:
    write_rules(
        plugins,
        {
            "when": {"prune_criterion": ["ByWeight", "Other"], "criterion.when": "during"},
            "set": {"outer_layer_pruning": False, "epochs": 40},
            "why": "{prune_criterion} is slow on {data_set}",
        },
        {"when": {"model": "VGG16"}, "set": {"batch_size": 64}, "why": "small memory"},
    )
    result = command("--plugins", plugins, "--prune_criterion", "ByWeight")
    assert (result.config.outer_layer_pruning, result.config.epochs) == (False, 40)
    assert result.config.batch_size == 128
    assert "autoconfig: epochs = 40 (ByWeight is slow on FASHION_MINI)" in result.config.notes
    base = ("--plugins", plugins, "--prune_criterion", "ByWeight")
    chosen = command(*base, "--epochs", "2", "--model", "VGG16")
    assert (chosen.config.epochs, chosen.config.batch_size) == (2, 64)


def test_what_a_rule_sets_is_checked_like_a_flag(plugins: Path, command: Command) -> None:
    write_rules(plugins, {"when": {}, "set": {"epochs": -3}, "why": "no reason"})
    result = command("--plugins", plugins)
    assert result.code == 2 and "at least 0, got -3" in result.err


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"when": {"modl": "x"}, "set": {}, "why": ""}, "unknown condition 'modl': did you mean 'model'?"),
        ({"when": {"criterion.granularit": "x"}, "set": {}, "why": ""}, "'criterion.granularity'"),
        ({"when": {}, "set": {"epoch": 3}, "why": ""}, "unknown setting 'epoch': did you mean 'epochs'?"),
        ({"when": {}, "set": {"epochs": "many"}, "why": ""}, "epochs must be an integer"),
        ({"when": {}, "sets": {}, "why": ""}, "unknown key 'sets': did you mean 'set'?"),
        ({"when": {}, "set": {}}, "why"),
        ({"when": [], "set": {}, "why": ""}, "mappings"),
        ("rule", "must be"),
    ],
)
def test_a_malformed_rule_is_an_error_that_names_the_file(tmp_path: Path, rule: object, expected: str) -> None:
    folder = write_rules(tmp_path / "mine", {"when": {}, "set": {}, "why": "fine"}, rule)
    with pytest.raises(UsageError) as error:
        load_rules([folder])
    assert f"{folder / 'autoconfig.json'}, rule 2" in str(error.value)
    assert expected in str(error.value)


def test_a_file_that_is_no_list_of_rules_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "autoconfig.json").write_text("{}")
    with pytest.raises(UsageError, match="list of rules"):
        load_rules([tmp_path])
    (tmp_path / "autoconfig.json").write_text("[\n{]")
    with pytest.raises(UsageError, match="autoconfig.json, line 2"):
        load_rules([tmp_path])


def test_a_reason_with_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    folder = write_rules(tmp_path / "mine", {"when": {}, "set": {"epochs": 3}, "why": "{modl} is big"})
    with pytest.raises(UsageError, match="names no setting"):
        fill(RunConfig(), [folder])


def test_an_unknown_criterion_is_named_before_any_rule_asks_for_its_facts() -> None:
    with pytest.raises(UsageError, match="did you mean 'SNIP'"):
        fill(RunConfig(prune_criterion="SNIPP"))


def test_our_own_rules_are_well_formed() -> None:
    assert all(rule.file == SHIPPED and rule.why for rule in load_rules())


def test_an_evaluation_needs_no_pruning_settings() -> None:
    config = RunConfig(eval=True, prune_criterion="SNIP")
    assert fill(config) == [] and config.outer_layer_pruning is False


def test_a_star_stands_for_anything_but_nothing(plugins: Path, command: Command) -> None:
    write_rules(plugins, {"when": {"image_size": "*"}, "set": {"epochs": 3}, "why": "images of a size"})
    assert command("--plugins", plugins, "--image_size", "32").config.epochs == 3
    assert command("--plugins", plugins).config.epochs == 10


def test_an_attack_chooses_its_tester_in_an_evaluation_alone() -> None:
    config = RunConfig(eval=True, attack="FGSM")
    assert [(one.field, one.value) for one in fill(config)] == [("test_scheme", "AdversarialEvaluation")]
    assert fill(RunConfig(eval=True)) == []
    given = RunConfig(eval=True, attack="FGSM", test_scheme="Accuracy", given={"test_scheme"})
    assert fill(given) == [] and given.test_scheme == "Accuracy"
