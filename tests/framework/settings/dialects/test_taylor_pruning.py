"""Command lines and settings files of Taylor pruning."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.settings.dialects.taylor_pruning import CONFIG_KEYS, NEEDLESS_KEYS, SPECIAL
from tests.command_line import refused

Command = Callable[..., Any]
#: as shipped for ResNet-50 at 72 %
TAYLOR = {
    "method": 22, "frequency": 30, "prune_per_iteration": 100, "maximum_pruning_iterations": 32, "fixed_layer": -1,
    "starting_neuron": 0, "pruning_threshold": 100.0, "start_pruning_after_n_iterations": 0, "seed": 0,
    "do_iterative_pruning": True, "fixed_criteria": False, "pruning_momentum": 0.9, "flops_regularization": 0.0,
    "prune_neurons_max": 3200, "group_size": 1, "use_momentum": True, "rank_neurons_equally": False,
    "push_group_down": False,
}  # fmt: skip


def test_a_settings_file_that_is_not_there_is_one_line(command: Command) -> None:
    refused(command("--pruning_config", "nowhere.json"), "there is no file nowhere.json")


def test_a_command_line_of_taylor_pruning_runs(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p72.json").write_text(json.dumps(TAYLOR))
    result = command(
        "--name=runs/resnet50/prune72", "--dataset=Imagenet", "--data", "/imagenet", "--lr=0.001",
        "--lr-decay-every=10", "--momentum=0.9", "--epochs=25", "--batch-size=256", "--pruning=True", "--seed=0",
        "--model=resnet50", "--mgpu=True", "--group_wd_coeff=1e-8", "--wd=0.0", "--tensorboard=True",
        "--pruning-method=22", "--no_grad_clip=True", "--load_model", "",
        f"--pruning_config={tmp_path / 'p72.json'}",
    )  # fmt: skip
    config = result.config
    assert result.code == 0, result.err
    assert (config.model, config.arch, config.protect) == ("TorchvisionModel", "resnet50", ("conv1",))
    assert (config.data_set, config.data_dir, config.pretrained) == ("IMAGENET", "/imagenet", None)
    assert (config.learning_rate, config.lr_schedule, config.lr_step, config.l2_reg) == (1e-3, "step", 10, 0)
    assert (config.prune_criterion, config.schedule, config.grad_clip) == ("TaylorGate", "iterative", 0)
    assert (config.frequency, config.prune_per_iteration, config.prune_neurons_max) == (30, 100, 3200)
    assert (config.maximum_pruning_iterations, config.group_wd_coeff, config.optimizer) == (32, 1e-8, "SGD")
    assert any("--mgpu has no effect" in note for note in result.notes)
    assert result.command.count("--lr-decay-every=10") == 1  # as it was typed


@pytest.fixture
def settings(command: Command, tmp_path: Path) -> Command:
    """Run with a settings file."""

    def call(values: Any, *arguments: str) -> Any:
        (tmp_path / "p.json").write_text(values if isinstance(values, str) else json.dumps(values))
        return command("--pruning_config", str(tmp_path / "p.json"), *arguments)

    return call


def test_every_key_of_a_settings_file_is_read(settings: Command) -> None:
    config = settings(TAYLOR | {"group_size": 3, "fixed_layer": 2, "fixed_criteria": True, "seed": 7}).config
    assert (config.group_size, config.fixed_layer, config.fixed_criteria, config.seed) == (3, 2, True, 7)
    assert (config.pruning_momentum, config.pruning_threshold, config.scope) == (0.9, 100.0, None)
    assert "pruning_config" not in config.to_dict()
    assert settings(TAYLOR | {"use_momentum": False}).config.pruning_momentum == 0
    assert settings(TAYLOR | {"do_iterative_pruning": False}).config.maximum_pruning_iterations == 1
    assert settings(TAYLOR | {"rank_neurons_equally": True}).config.scope == "layer"
    assert settings(TAYLOR | {"l2_normalization_per_layer": True}).config.l2_normalization_per_layer is True
    assert settings(TAYLOR | {"flops_regularization": 1e-12}).config.flops_regularization == 1e-12
    combined = settings(TAYLOR | {"method": 50, "starting_neuron": 3, "pruning_silent": True})
    assert combined.config.options("criterion") == {"size": 3}
    one = settings(TAYLOR | {"method": 50, "starting_neuron": 3, "fixed_layer": 2}).config
    assert one.options("criterion") == {"size": 3, "layer": 2} and one.fixed_layer == 2
    assert any("pruning_silent has no effect" in note for note in combined.notes)
    assert {*CONFIG_KEYS, *SPECIAL} == set(TAYLOR) | {"l2_normalization_per_layer"} and set(NEEDLESS_KEYS)


def test_absent_keys_have_the_defaults_of_their_reader(settings: Command) -> None:
    config = settings({}).config
    assert (config.prune_criterion, config.frequency, config.prune_per_iteration) == ("TaylorWeight", 500, 2)
    assert (config.maximum_pruning_iterations, config.prune_neurons_max) == (10000, 1)
    assert (config.pruning_threshold, config.pruning_momentum, config.seed) == (100.0, 0.9, 333)


def test_the_command_line_wins_over_a_settings_file(settings: Command) -> None:
    config = settings(TAYLOR, "--frequency", "5", "--prune_criterion", "MagBased", "--seed", "4").config
    assert (config.frequency, config.prune_criterion, config.seed) == (5, "MagBased", 4)
    assert settings(TAYLOR, "--pruning-method", "31").config.prune_criterion == "BNTaylor"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"methd": 22}, "unknown key 'methd': did you mean 'method'?"),
        (TAYLOR | {"push_group_down": True}, "push_group_down true is not supported"),
        (TAYLOR | {"frequency": "often"}, "frequency must be an integer, got 'often'"),
        (TAYLOR | {"frequency": 0}, "frequency must be at least 1, got 0"),
        (TAYLOR | {"frequency": True}, "frequency must be a number, got True"),
        (TAYLOR | {"fixed_criteria": 1}, "fixed_criteria must be true or false, got 1"),
        (TAYLOR | {"use_momentum": 0.9}, "use_momentum must be true or false"),
        (TAYLOR | {"method": 24}, "24 is unknown"),
        (TAYLOR | {"starting_neuron": 5}, "starting_neuron 5: "),
        ([1], "must contain keys and values, found list"),
        ('{"method": 22,\n oops}', "line 2"),
    ],
)
def test_a_bad_settings_file_is_one_line(settings: Command, values: Any, words: str) -> None:
    refused(settings(values), words)
    refused(settings(TAYLOR, "--schedule", "rounds"), "--pruning_config is for --schedule iterative, not rounds")
