"""Flags that nothing reads are told of, each by a line; those that are read are not."""

import json
import shlex
from pathlib import Path

import pytest

from secateur.framework.commands.assemble import build_criterion
from secateur.framework.commands.plan import plan_pruning
from secateur.framework.plugins.registry import registry
from secateur.framework.schedules.base import Never
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.settings.unused_flags import unused_in_tests
from tests.command_line import resolved


def idle(command: str, file: Path | None = None) -> list[str]:
    """The flags that the run of a command tells to be without effect."""
    found = [note for note in noted(command, file)[1] if note.startswith("--") and "has no effect" in note]
    return [note.split()[0].lstrip("-") for note in found]


def noted(command: str, file: Path | None = None) -> tuple[RunConfig, list[str]]:
    """The settings of a command, and the lines that its run prints."""
    words = shlex.split(command)
    flags: dict[str, object] = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            value = words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("--") else True
            flags[word[2:]] = value
    config, decisions = resolved(flags, file)
    _, config = plan_pruning(config, decisions, build_criterion(config))
    return config, decisions.notes


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--l0 --pruning_limit 0.9 --schedule during --prune_delay 40 --budget macs",
         ["pruning_limit", "schedule", "prune_delay", "budget"]),
        ("--prune_criterion SNIP --l0_reg 5 --hoyer_reg 3 --beta_ema 0.5", ["hoyer_reg", "l0_reg", "beta_ema"]),
        ("--prune_criterion EmptyCrit --pruning_limit 0.5 --snip_steps 3 --min_channels 2",
         ["pruning_limit", "snip_steps", "min_channels"]),
        ("--prune_criterion SNAP --snip_steps 3", ["snip_steps"]),
        ("--prune_criterion SNAPit --snip_steps 3 --pruning_limit 0.9 --budget macs", []),
        ("--momentum 0.5", ["momentum"]),
        ("--momentum 0.5 --optimizer SGD", []),
        ("--lr_step 3 --lr_gamma 0.5", ["lr_step", "lr_gamma"]),
        ("--prune_criterion LossBased --n_rounds 1 --alpha 0.5 --track_batches 5", ["track_batches", "alpha"]),
        ("--prune_criterion LossBased --n_rounds 1 --alpha 0.5 --track_batches 5 --track_importance", []),
        ("--lr_schedule step --lr_step 3 --lr_gamma 0.5", []),
        ("--l0 --l0_reg 5 --beta_ema 0.5 --l1_reg 0.1", []),
        ("--hoyer_square --hoyer_reg 3 --l1_reg 0.1 --pruning_limit 0.9 --prune_delay 2", []),
        ("", []),
    ],
)  # fmt: skip
def test_each_flag_without_effect_gets_a_line(command: str, told: list[str]) -> None:
    assert idle(command) == told


def test_a_file_is_made_for_more_than_one_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("prune_criterion: EmptyCrit\npruning_limit: 0.9\nl0_reg: 1.0\nbudget: weights\n")
    assert idle("", recipe) == []
    assert idle("--pruning_limit 0.9", recipe) == ["pruning_limit"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("--prune_criterion HoyerSquare", "prunes by a fixed threshold"),
        (
            "--prune_criterion TaylorGate --prune_per_iteration 1 --prune_neurons_max 9",
            "the number of channels ends",
        ),
    ],
)
def test_a_run_repeated_from_its_own_settings_has_no_remark_on_its_limit(
    command: str, reason: str, tmp_path: Path
) -> None:
    config, notes = noted(command)
    record = tmp_path / "config.yaml"
    record.write_text(json.dumps(config.to_dict()))
    assert not [note for note in notes + noted("", record)[1] if "pruning_limit" in note]
    for told in (noted(f"{command} --pruning_limit 0.9")[1], noted("--pruning_limit 0.9", record)[1]):
        assert len([note for note in told if reason in note and "--pruning_limit has no effect" in note]) == 1


def test_an_evaluation_tells_of_the_flags_of_training() -> None:
    flags = resolved({"eval": True, "pruning_limit": "0.9", "epochs": "3", "batch_size": "8"})[1].flags
    assert {line.split()[0] for line in unused_in_tests(flags)} == {"--epochs", "--pruning_limit"}


def test_only_a_criterion_that_never_prunes_makes_flags_of_pruning_idle() -> None:
    never = [name for name in registry.names("criterions")
             if isinstance(registry.get("criterions", name).schedule, Never)]  # fmt: skip
    assert never == [name for name in registry.names("criterions") if not RunConfig(prune_criterion=name).prunes]
    assert never == ["EmptyCrit"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--hoyer_square", ""),
        ("--hoyer_square --prune_criterion Magnitude", ""),
        (
            "--hoyer_square --prune_criterion SNIP",
            "--hoyer_square adds no penalty: it ends with",
        ),
        ("--hoyer_square --prune_criterion SNIP --schedule after", ""),
        ("--group_hoyer_square --loss CrossEntropy", "--group_hoyer_square adds no penalty: --loss CrossEntropy"),
    ],
)
def test_a_mode_whose_penalty_another_flag_takes_away_says_so(command: str, told: str) -> None:
    _, notes = noted(command)
    found = [note for note in notes if "adds no penalty" in note]
    assert found == [] if not told else len(found) == 1 and found[0].startswith(told)
