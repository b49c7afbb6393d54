"""The flags of rounds, steps and tracked scores."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.command_line import refused

Command = Callable[..., Any]


BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "no round": ("--n_rounds 0", ("--n_rounds must be at least 1, got 0",)),
    "thresholds that fall": ("--thresholds 0.5,0.3", ("thresholds 0.5,0.3 must ascend",)),
    "thresholds above all": ("--thresholds [50,100]", ("[0, 100)",)),
    "thresholds in words": ("--thresholds half", ("--thresholds must be comma-separated numbers", "'half'")),
    "negative threshold": ("--thresholds -0.5,0.3", ("thresholds -0.5,0.3",)),
    "rounds of two kinds": ("--thresholds 0.3,0.5 --n_rounds 5", ("--n_rounds 5 and --thresholds 0.3,0.5",)),
    "two limits": ("--thresholds 0.3,0.5 --pruning_limit 0.9", ("--pruning_limit 0.9 and --thresholds",)),
    "rounds of another schedule": ("--n_rounds 3 --schedule during", ("--schedule rounds, not during",)),
    "steps and rounds": ("--n_rounds 3 --frequency 5", ("--n_rounds is for", "--frequency for")),
    "epochs between rounds": ("--n_rounds 3 --prune_freq 2", ("--prune_freq is for --schedule during or after",)),
    "rounded steps": ("--frequency 5 --round_to 8", ("use --group_size 8",)),
    "rewound steps": ("--frequency 5 --enable_rewinding", ("--enable_rewinding is incompatible with",)),
    "steps that rank inputs": ("--frequency 5 --outer_layer_pruning", ("does not rank inputs",)),
    "tracked steps": ("--frequency 5 --track_importance", ("averages over all batches",)),
    "tracked inputs": ("--track_importance --outer_layer_pruning --schedule during", ("inputs are not tracked",)),
    "gates in rounds": ("--l0 --n_rounds 3", ("--l0 prunes by gates", "--schedule rounds")),
    "tracked gates": ("--l0 --track_importance", ("--track_importance would have no effect",)),
    "weight of nothing": ("--track_importance --alpha 0", ("--alpha must be in (0, 1], got 0",)),
    "weight above one": ("--alpha 1.5", ("--alpha must be in (0, 1]",)),
    "no temperature": ("--T 0", ("--T must be above 0, got 0",)),
    "temperature of another": ("--grasp_T 2 --prune_criterion SNAP", ("--grasp_T: the criterion SNAP has no",)),
    "samples elsewhere": ("--imp_samples 9 --prune_criterion MagBased", ("the criterion MagBased has no such",)),
    "weights of gates": ("--use_l2 --prune_criterion TaylorGate", ("TaylorGate has no scores of",)),
    "sums of weights": ("--use_init --prune_criterion TFO", ("TFO has no scores of individual weights",)),
    "twice": ("--prune_criterion LossBased --imp_samples 9 --set criterion.samples=8", ("criterion.samples",)),
    "schedule": ("--schedule iterativ", ("unknown --schedule 'iterativ': did you mean 'iterative'?",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(command: Command, name: str) -> None:
    arguments, words = BAD[name]
    refused(command(*arguments.split()), *words)


def test_a_percentage_and_a_list_in_brackets_are_thresholds(command: Command) -> None:
    config = command("--thresholds", "[30, 50,75]", "--prune_criterion", "MagBased").config
    assert (config.thresholds, config.n_rounds, config.pruning_limit) == ((0.3, 0.5, 0.75), 3, 0.75)
    assert config.schedule == "rounds"
    assert command("--thresholds", "default", "--schedule", "rounds").config.thresholds == ()


def test_a_temperature_is_that_of_scoring_too_unless_set_apart(command: Command) -> None:
    config = command("--prune_criterion", "LossBased", "--T", "2", "--imp_samples", "99").config
    assert config.options("criterion") == {"temperature": 2.0, "samples": 99}
    config = command("--prune_criterion", "LossBased", "--set", "criterion.temperature=3").config
    assert (config.T, config.options("criterion")) == (5.0, {"temperature": 3})
    config = command("--prune_criterion", "GraspChannel", "--grasp_T", "7").config
    assert config.options("criterion") == {"grasp_temperature": 7.0}
    assert command("--prune_criterion", "SNAP", "--T", "2").config.options("criterion") == {}
