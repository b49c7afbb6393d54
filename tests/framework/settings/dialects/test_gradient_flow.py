"""Command lines of pruning by gradient flow, and what they share with those of Taylor pruning."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.settings.dialects.gradient_flow import FOREIGN, NOTHING_TO_DO, TRAINING, translate
from tests.command_line import refused

Command = Callable[..., Any]


def settings_of(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The flags with their translations, over the defaults of the original scripts."""
    found = translate(flags, file or {})
    return {**found.defaults, **found.flags}


BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown measure": ("--pruning_type mag_base", ("did you mean 'mag_based'?",)),
    "percent of more than all": ("--pruning_type l1 --prune_percent 100", ("--prune_percent must be in [0",)),
    "percent in words": ("--prune_percent much", ("--prune_percent must be a number, got 'much'",)),
    "neither true nor false": ("--mgpu True --no_grad_clip maybe", ("--no_grad_clip must be true or false",)),
    "two spellings": ("--moment 0.5 --momentum 0.9", ("--moment and --momentum contradict",)),
    "training on the test set": ("--use_test_as_train True", ("never trained on the test set",)),
    "pickled scores": ("--pruning_mask_from a.pkl", ("never read from a pickle",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(command: Command, name: str) -> None:
    arguments, words = BAD[name]
    refused(command(*arguments.split()), *words)


FLOW = (
    "--model vgg --num_classes 10 --seed 0 --pretrained_path 0 --data_path CIFAR10 --download False "
    "--pruning_type loss_based --prune_percent 75 --n_rounds 5 --T 5 --imp_samples 2560 --track_stats True "
    "--moment 0.9 --warmup_epochs 2 --thresholds default --lr_prune 0.1 --preserve_moment True "
    "--track_importance False --track_batches 20 --alpha default --use_init False --use_l2 False --bypass False"
)


def test_a_command_line_of_gradient_flow_runs(command: Command) -> None:
    result = command(*FLOW.split())
    config = result.config
    assert result.code == 0, result.err
    assert (config.model, config.data_set, config.prune_criterion) == ("VGG13", "CIFAR10", "LossBased")
    assert (config.pruning_limit, config.n_rounds, config.warmup_epochs, config.lr_prune) == (0.75, 5, 2, 0.1)
    assert (config.optimizer, config.momentum, config.schedule) == ("SGD", 0.9, "rounds")
    assert (config.download, config.track_stats, config.preserve_moment, config.alpha) == (False, True, True, 0.8)
    assert config.pretrained is None and config.autoconfig


def test_the_name_of_a_number_may_be_the_switch_that_the_published_text_takes_it_for(command: Command) -> None:
    for spelling in (("--track_batches=True",), ("--track_batches", "true")):
        config = command("--prune_criterion", "LossBased", *spelling).config
        assert (config.track_importance, config.track_batches) == (True, 20)
    config = command("--prune_criterion", "BiasedLossTracked", "--track_batches", "False").config
    assert config.track_importance is False
    assert command("--prune_criterion", "LossBased", "--track_batches", "7").config.track_batches == 7


def test_no_foreign_flag_is_in_the_help(command: Command) -> None:
    text = command("--help").out
    for name in (*FOREIGN, *NOTHING_TO_DO):
        assert f"--{name} " not in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--batch-size=3 --tuning True", {"batch_size": 3, "tuning": True}),
        ("--preserve_moment false --epochs 2", {"preserve_moment": False, "epochs": 2}),
        ("--preserve-moment=False", {"preserve_moment": False}),
        ("--tuning=False", {"tuning": False}),
        ("--no-preserve-moment", {"preserve_moment": False}),
        ("--tuning=yes --download=0", {"tuning": True, "download": False}),
        ("--augment --epochs 2", {"augment": "crop_flip", "epochs": 2}),
        ("--augment=True", {"augment": "crop_flip"}),
        ("--augment False", {"augment": "none"}),
        ("--augment flip", {"augment": "flip"}),
        ("--run_name True", {"run_name": "True"}),
        ("--lr-decay-every=10 --lr-decay-scalar 0.5", {"lr_schedule": "step", "lr_step": 10, "lr_gamma": 0.5}),
    ],
)
def test_spellings_of_other_scripts_are_read(command: Command, given: str, expected: dict[str, Any]) -> None:
    config = command(*given.split()).config
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--tuning=perhaps", "--tuning must be true or false, got 'perhaps'"),
        ("--tuning perhaps", "'perhaps'"),  # a command
        ("--no-such-flag", "unknown flag '--no_such_flag'"),
        ("--tunin", "did you mean '--tuning'?"),
        ("--lr-decay-evry=10", "did you mean '--lr_decay_every'?"),
    ],
)
def test_a_word_that_is_no_truth_value_is_refused(command: Command, given: str, words: str) -> None:
    refused(command(*given.split()), words)


def test_a_command_after_a_switch_is_no_value_of_it(command: Command) -> None:
    assert "LeNet5" in command("--tuning", "list", "models").out
    assert "--samples" in command("--tuning", "true", "oracle", "--help").out


def test_the_switch_that_turns_pruning_off_takes_along_how_to_prune() -> None:
    found = translate({"pruning": "False", "pruning_method": 22, "prune_per_iteration": 10, "epochs": 3}, {})
    assert (found.flags, found.defaults) == ({"prune_criterion": "EmptyCrit", "epochs": 3}, {})
    assert "--pruning_method has no effect: nothing is pruned" in found.notes


@pytest.mark.parametrize(
    ("flags", "file", "expected"),
    [
        ({"pruning": "True"}, {}, {"prune_criterion": "TaylorWeight", "schedule": "iterative"}),
        ({"pruning": "True", "pruning_method": 22}, {}, {"pruning_method": 22}),
        ({"pruning": "True"}, {"epochs": 3}, {}),
        ({"model": "lenet3"}, {}, {"model": "LeNet5", "prune_criterion": "EmptyCrit"}),
        ({"model": "lenet3", "prune_criterion": "SNAP"}, {}, {"model": "LeNet5", "prune_criterion": "SNAP"}),
        ({"model": "vgg"}, {}, {"model": "VGG13"}),
        ({"data_path": "fashion_mini"}, {}, {"data_set": "FASHION_MINI"}),
        ({"dataset": "CIFAR100"}, {}, {"data_set": "CIFAR100"}),
        ({"data_path": "my/images"}, {}, {"data_set": "IMAGEFOLDER", "data_dir": "my/images"}),
        ({"model": "resnet-34", "set": ("model.hidden_dim=9",)}, {},
         {"model": "ResNet34", "set": ("model.variant=cifar", "model.hidden_dim=9")}),
    ],
)  # fmt: skip
def test_what_their_scripts_do_unless_told_otherwise(
    flags: dict[str, Any], file: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert settings_of(flags, file) == expected


def test_gradient_flow_trains_as_published_for_as_long_as_asked() -> None:
    shared = {"prune_criterion": "L1", "optimizer": "SGD"}
    assert settings_of({"pruning_type": "l1"}) == TRAINING | shared
    own = settings_of({"pruning_type": "l1", "lr": "0.2", "lr_schedule": "cosine", "data_path": "MNIST"})
    told = {"learning_rate": "0.2", "lr_schedule": "cosine", "data_set": "MNIST"}
    assert own == {k: v for k, v in (TRAINING | shared).items() if k != "lr_milestones"} | told
    found, notes = settings_of(forty := {"pruning_type": "l1", "epochs": "40"}), translate(forty, {}).notes
    always = {k: v for k, v in TRAINING.items() if k not in ("data_set", "lr_milestones", "epochs")}
    assert found == always | shared | {"epochs": "40", "lr_milestones": "20,30"}
    assert "--epochs without a data set: the original script uses --data_set CIFAR100" in notes
    short = {"pruning_type": "l1", "epochs": "1", "data_path": "CIFAR10"}
    assert settings_of(short) == {k: v for k, v in always.items() if k != "lr_schedule"} | shared | {
        "epochs": "1", "data_set": "CIFAR10"
    }  # fmt: skip
    assert not any("without a data set" in note for note in translate(short, {}).notes)


def test_bypass_leaves_the_temperature_and_the_protected_share_of_the_published_script() -> None:
    found = settings_of({"pruning_type": "l1", "bypass": "True", "T": "3"})
    assert (found["autoconfig"], found["T"], found["keep_share"]) == (False, "3", "0.05")
    assert settings_of({"pruning_type": "l1", "bypass": "True"})["T"] == "5"
    assert "T" not in settings_of({"pruning_type": "l1", "bypass": "False"})
    assert settings_of({"pruning_type": "biased_loss", "bypass": "True"})["use_init"] is True


def test_rates_are_for_the_optimizer_of_the_script_and_milestones_of_ones_own_stay() -> None:
    adam = settings_of({"pruning_type": "l1", "epochs": "8", "optimizer": "ADAM"})
    assert not {"learning_rate", "l2_reg", "lr_schedule", "lr_milestones"} & adam.keys()
    own = settings_of({"pruning_type": "l1", "epochs": "2", "lr_milestones": "1"})
    assert (own["lr_schedule"], own["lr_milestones"]) == ("multistep", "1")
    assert "lr_schedule" not in settings_of({"pruning_type": "l1", "epochs": "often"})


@pytest.mark.parametrize(
    ("given", "rounds", "percent", "expected", "told"),
    [
        ("[10,50,80]", "3", "80", "0.1,0.5,0.8", 0), ("10,50,80", "1", "75", "0.1,0.5,0.8", 2),
        ("[1]", "1", "1", "0.01", 0), ("0.1,0.5", "5", "50", "0.1,0.5", 1), ("default", "5", "75", "default", 0),
    ],
)  # fmt: skip
def test_thresholds_are_percentages_there_and_win(
    given: str, rounds: str, percent: str, expected: str, told: int
) -> None:
    flags = {
        "pruning_type": "tfo",
        "thresholds": given,
        "n_rounds": rounds,
        "prune_percent": percent,
        "epochs": "9",
    }
    found = translate(flags, {})
    assert found.flags["thresholds"] == expected
    assert len([note for note in found.notes if "has no effect" in note]) == told
    assert ("n_rounds" in found.flags) == (given == "default" or int(rounds) == expected.count(",") + 1)


def test_thresholds_of_a_file_of_settings_are_lists() -> None:
    flags = {"pruning_type": "tfo", "epochs": 9, "thresholds": [10, 50], "n_rounds": 2, "prune_percent": 50}
    assert settings_of(flags)["thresholds"] == "0.1,0.5"
    for shares in ([0.1, 0.5], (0.1, 0.5), "[0.1,0.5]"):
        assert settings_of(flags | {"thresholds": shares})["thresholds"] == shares
    assert settings_of(flags | {"n_rounds": "abc"})["n_rounds"] == "abc"  # refused later, as a number


def test_a_published_command_with_thresholds_and_other_numbers_runs(command: Command) -> None:
    words = "--pruning_type mag_based --thresholds [10,50,80] --prune_percent 75 --n_rounds 1 --epochs 5"
    config = command(*words.split()).config
    assert (config.thresholds, config.n_rounds, config.pruning_limit) == ((0.1, 0.5, 0.8), 3, 0.8)


def test_defaults_of_a_script_are_below_the_config_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optimizer: ADAM\nseed: 7\ndata_set: MNIST\n")
    words = ("--pruning_type", "l1", "--n_rounds", "2", "--prune_percent", "50")
    plain, below = command(*words), command("--config", tmp_path / "mine.yaml", *words)
    assert (plain.config.optimizer, plain.config.seed, plain.config.data_set) == ("SGD", 0, "CIFAR100")
    assert (plain.config.learning_rate, plain.config.lr_schedule) == (0.1, "multistep")
    assert (below.config.optimizer, below.config.seed, below.config.data_set) == ("ADAM", 7, "MNIST")
    assert (below.config.learning_rate, below.config.lr_schedule) == (0.002, "none")  # those there are for SGD
    assert plain.decisions.source("seed") == "dialect" and below.decisions.source("seed") == "config file"
    assert below.config.epochs == 160 and below.decisions.source("epochs") == "dialect"
    (tmp_path / "short.yaml").write_text("epochs: 40\n")
    config = command("--config", tmp_path / "short.yaml", *words).config
    assert (config.epochs, config.lr_milestones, config.data_set) == (40, (20, 30), "FASHION_MINI")


def test_keys_of_a_config_file_may_be_those_of_other_programs(command: Command, tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("pruning_type: tfo\nprune_percent: 75\nmoment: 0.5\nn_rounds: 3\n")
    config = command("--config", tmp_path / "theirs.yaml", "--moment", "0.7").config
    assert (config.prune_criterion, config.pruning_limit, config.momentum) == ("TFO", 0.75, 0.7)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("lr: 0.2\n", "--learning_rate 0.3", {"learning_rate": 0.3}),
        ("pruning_type: grasp\n", "--prune_criterion SNIP", {"prune_criterion": "SNIP"}),
        ("disable_masking: no\n", "--prune_criterion SNIP", {"masking": True}),
        ("disable_masking: true\n", "--prune_criterion SNIP --masking", {"masking": True}),
        ("growing_rate: 0.0\npruning_rate: null\n", "", {"prune_criterion": "SNAPit"}),
    ],
)
def test_flags_win_over_their_keys_of_a_file_which_have_types(
    command: Command, tmp_path: Path, text: str, words: str, expected: dict[str, Any]
) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    result = command("--config", tmp_path / "theirs.yaml", *words.split())
    assert result.code == 0, result.err
    assert {name: getattr(result.config, name) for name in expected} == expected
    assert not result.decisions.flags & {"masking", "learning_rate"} or "--" in words


def test_two_names_of_a_setting_in_a_file_must_agree(command: Command, tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text("lr: 0.3\nlearning_rate: 0.2\n")
    result = command("--config", tmp_path / "both.yaml")
    assert result.code == 2 and "lr and learning_rate contradict each other" in result.err


def test_defaults_of_a_key_of_a_file_depend_on_the_flags_too(command: Command, tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("pruning_type: tfo\n")
    config = command("--config", tmp_path / "theirs.yaml", "--epochs", "40").config
    assert (config.epochs, config.lr_milestones, config.data_set) == (40, (20, 30), "FASHION_MINI")
    (tmp_path / "asked.yaml").write_text("pruning: true\n")
    config = command("--config", tmp_path / "asked.yaml", "--epochs", "3").config
    assert (config.prune_criterion, config.schedule) == ("TaylorWeight", "iterative")
