"""The flags of rounds, steps and tracked scores, and the command lines and files of two other systems."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rounds import MEASURES
from secateur.framework.plugins.registry import registry
from secateur.framework.settings.autoconfig import fill
from secateur.framework.settings.dialects.gradient_flow import FOREIGN, NOTHING_TO_DO, respelled, translate
from secateur.framework.settings.dialects.gradient_flow_defaults import TRAINING
from secateur.framework.settings.dialects.taylor_pruning import CONFIG_KEYS, NEEDLESS_KEYS, SPECIAL
from secateur.framework.settings.run_config import RunConfig

Command = Callable[..., Any]
#: as shipped for ResNet-50 at 72 %
TAYLOR = {
    "method": 22, "frequency": 30, "prune_per_iteration": 100, "maximum_pruning_iterations": 32, "fixed_layer": -1,
    "starting_neuron": 0, "pruning_threshold": 100.0, "start_pruning_after_n_iterations": 0, "seed": 0,
    "do_iterative_pruning": True, "fixed_criteria": False, "pruning_momentum": 0.9, "flops_regularization": 0.0,
    "prune_neurons_max": 3200, "group_size": 1, "use_momentum": True, "rank_neurons_equally": False,
    "push_group_down": False,
}  # fmt: skip


def refused(result: Any, *words: str) -> None:
    assert result.code == 2 and result.config is None, result.err
    assert result.err.count("\n") == 1 and "Traceback" not in result.err
    for word in words:
        assert word in result.err, result.err


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
    "temperature of another": ("--grasp_T 2 --prune_criterion SNAP", ("--grasp_T: SNAP has no such option",)),
    "samples elsewhere": ("--imp_samples 9 --prune_criterion MagBased", ("--imp_samples: MagBased has no such",)),
    "weights of gates": ("--use_l2 --prune_criterion TaylorGate", ("TaylorGate has no scores of",)),
    "sums of weights": ("--use_init --prune_criterion TFO", ("TFO has no scores of individual weights",)),
    "twice": ("--prune_criterion LossBased --imp_samples 9 --set criterion.samples=8", ("criterion.samples",)),
    "schedule": ("--schedule iterativ", ("unknown --schedule 'iterativ': did you mean 'iterative'?",)),
    "no such file": ("--pruning_config nowhere.json", ("nowhere.json cannot be read",)),
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


def test_a_percentage_and_a_list_in_brackets_are_thresholds(command: Command) -> None:
    config = command("--thresholds", "[30, 50,75]", "--prune_criterion", "MagBased").config
    assert (config.thresholds, config.n_rounds, config.pruning_limit) == ((0.3, 0.5, 0.75), 3, 0.75)
    assert config.schedule == "rounds"
    assert command("--thresholds", "default", "--schedule", "rounds").config.thresholds == ()


FAMILY = ["MagBased", "L1", "BN", "LossBased", "TFO", "BiasedLoss", "BiasedLossTracked", "Fisher", "NvidiaFisher",
          "GraspChannel", "GradPreserve"]  # fmt: skip


@pytest.mark.parametrize("criterion", [*FAMILY, "SNAP", "EmptyCrit", "TaylorGate"])
def test_the_family_of_gradient_flow_trains_at_its_temperature(command: Command, criterion: str) -> None:
    filled = command("--prune_criterion", criterion).config.T
    assert filled == (5 if criterion in FAMILY else None)
    assert command("--prune_criterion", criterion, "--T", "2").config.T == 2
    assert command("--prune_criterion", criterion, "--bypass").config.T is None


def test_a_temperature_is_that_of_scoring_too_unless_set_apart(command: Command) -> None:
    config = command("--prune_criterion", "LossBased", "--T", "2", "--imp_samples", "99").config
    assert config.options("criterion") == {"temperature": 2.0, "samples": 99}
    config = command("--prune_criterion", "LossBased", "--set", "criterion.temperature=3").config
    assert (config.T, config.options("criterion")) == (5.0, {"temperature": 3})
    config = command("--prune_criterion", "GraspChannel", "--grasp_T", "7").config
    assert config.options("criterion") == {"grasp_temperature": 7.0}
    assert command("--prune_criterion", "SNAP", "--T", "2").config.options("criterion") == {}


def test_what_a_measure_needs_is_filled_in_and_the_users_own_flags_win(command: Command) -> None:
    tracked = command("--prune_criterion", "BiasedLossTracked").config
    assert (tracked.track_importance, tracked.use_l2, tracked.use_init) == (True, True, False)
    assert tracked.preserve_moment and tracked.options("criterion")["use_l2"] is True
    own = command("--prune_criterion", "BiasedLossTracked", "--no_use_l2", "--no_track_importance").config
    assert (own.track_importance, own.options("criterion")["use_l2"]) == (False, False)
    for spelling in ("--bypass", "--bypass=True", "--no_autoconfig"):
        plain = command("--prune_criterion", "BiasedLossTracked", spelling).config
        assert (plain.track_importance, plain.use_l2, plain.T) == (False, False, None)
    assert command("--prune_criterion", "BiasedLoss").config.options("criterion")["use_init"] is True
    assert command("--prune_criterion", "BiasedLoss", "--no_use_init").config.use_init is False
    assert command("--prune_criterion", "BiasedLoss", "--schedule", "before").config.use_init is False
    before = command("--prune_criterion", "BiasedLossTracked", "--schedule", "iterative").config
    assert (before.track_importance, before.use_l2) == (False, True)
    grad = command("--prune_criterion", "GradPreserve").config
    assert grad.grasp_T == 1 and command("--prune_criterion", "GradPreserve", "--grasp_T", "3").config.grasp_T == 3
    set_ = command("--prune_criterion", "GradPreserve", "--set", "criterion.grasp_temperature=4").config
    assert set_.options("criterion")["grasp_temperature"] == 4


def test_the_share_that_stays_is_for_channels_whatever_paper_a_criterion_is_of(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "plug" / "criterions").mkdir(parents=True)
    (tmp_path / "plug" / "criterions" / "FlowWeights.py").write_text(
        "from secateur import Criterion\n\n\nclass FlowWeights(Criterion):\n    granularity = 'weight'\n"
        "    paper = 'arXiv:2009.11839'\n\n    def score(self, model, batches, loss, groups=None):\n"
        "        return {}\n"
    )
    plug = ("--plugins", str(tmp_path / "plug"), "--prune_criterion", "FlowWeights", "--n_rounds", "2")
    assert (command(*plug).config.keep_share, command(*plug).config.T) == (0, 5)


def test_rounds_of_gradient_flow_empty_no_layer_unless_told_to(command: Command) -> None:
    assert command("--prune_criterion", "MagBased", "--n_rounds", "3").config.keep_share == 0.05
    assert command("--prune_criterion", "MagBased", "--n_rounds", "3", "--keep_share", "0").config.keep_share == 0
    assert command("--prune_criterion", "MagBased", "--n_rounds", "3", "--bypass").config.keep_share == 0
    assert command("--prune_criterion", "MagBased").config.keep_share == 0
    assert command("--prune_criterion", "SNAP", "--n_rounds", "3").config.keep_share == 0


def test_all_measures_of_gradient_flow_and_no_other_get_their_published_settings() -> None:
    got = set()
    for name in registry.names("criterions"):
        config = RunConfig(prune_criterion=name, schedule="rounds")
        fill(config)
        if (config.T, config.keep_share) == (5, 0.05):
            got.add(name)
    assert got == set(MEASURES)


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
    assert any("--mgpu has no effect" in note for note in config.notes)
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
    assert config.pruning_config is None
    assert settings(TAYLOR | {"use_momentum": False}).config.pruning_momentum == 0
    assert settings(TAYLOR | {"do_iterative_pruning": False}).config.maximum_pruning_iterations == 1
    assert settings(TAYLOR | {"rank_neurons_equally": True}).config.scope == "layer"
    assert settings(TAYLOR | {"l2_normalization_per_layer": True}).config.l2_normalization_per_layer is True
    assert settings(TAYLOR | {"flops_regularization": 1e-12}).config.flops_regularization == 1e-12
    combined = settings(TAYLOR | {"method": 50, "starting_neuron": 3, "pruning_silent": True}).config
    assert combined.options("criterion") == {"size": 3}
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


def test_no_foreign_flag_is_in_the_help(command: Command) -> None:
    text = command("--help").out
    for name in (*FOREIGN, *NOTHING_TO_DO):
        assert f"--{name} " not in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--batch-size=3 --eval True", "--batch_size=3 --eval"),
        ("--preserve_moment false --epochs 2", "--no_preserve_moment --epochs 2"),
        ("--eval=False", "--no_eval"),
        ("--augment --epochs 2", "--augment crop_flip --epochs 2"),
        ("--augment=True", "--augment crop_flip"),
        ("--augment False", "--augment none"),
        ("--augment flip", "--augment flip"),
        ("--run_name True", "--run_name True"),
        ("--no-such-flag", "--no-such-flag"),
        ("list criterions", "list criterions"),
        ("--epochs 2 -- --batch-size", "--epochs 2 -- --batch-size"),
    ],
)
def test_spellings_of_other_scripts_are_read(given: str, expected: str) -> None:
    names = {
        "batch_size",
        "eval",
        "no_eval",
        "preserve_moment",
        "no_preserve_moment",
        "epochs",
        "augment",
        "run_name",
    }
    assert " ".join(respelled(given.split(), names, {"eval", "preserve_moment"})) == expected


def test_the_switch_that_turns_pruning_off_takes_along_how_to_prune() -> None:
    found, lines = translate({"pruning": "False", "pruning_method": 22, "prune_per_iteration": 10, "epochs": 3})
    assert found == {"prune_criterion": "EmptyCrit", "epochs": 3}
    assert "--pruning_method has no effect: nothing is pruned" in lines


@pytest.mark.parametrize(
    ("flags", "recipe", "expected"),
    [
        ({"pruning": "True"}, False, {"pruning_method": 0, "schedule": "iterative"}),
        ({"pruning": "True", "pruning_method": 22}, False, {"pruning_method": 22}),
        ({"pruning": "True"}, True, {}),
        ({"model": "lenet3"}, False, {"model": "LeNet5", "prune_criterion": "EmptyCrit"}),
        ({"model": "lenet3", "prune_criterion": "SNAP"}, False, {"model": "LeNet5", "prune_criterion": "SNAP"}),
        ({"model": "vgg"}, False, {"model": "VGG13"}),
        ({"data_path": "fashion_mini"}, False, {"data_set": "FASHION_MINI"}),
        ({"dataset": "CIFAR100"}, False, {"data_set": "CIFAR100"}),
        ({"data_path": "my/images"}, False, {"data_set": "IMAGEFOLDER", "data_dir": "my/images"}),
        ({"model": "resnet-34", "set": ("model.hidden_dim=9",)}, False,
         {"model": "ResNet34", "set": ("model.variant=cifar", "model.hidden_dim=9")}),
    ],
)  # fmt: skip
def test_what_their_scripts_do_unless_told_otherwise(
    flags: dict[str, Any], recipe: bool, expected: dict[str, Any]
) -> None:
    assert translate(flags, recipe)[0] == expected


def test_gradient_flow_trains_as_published_for_as_long_as_asked() -> None:
    shared = {"prune_criterion": "L1", "optimizer": "SGD"}
    assert translate({"pruning_type": "l1"})[0] == TRAINING | shared
    own = translate({"pruning_type": "l1", "lr": "0.2", "lr_schedule": "cosine", "data_path": "MNIST"})[0]
    told = {"learning_rate": "0.2", "lr_schedule": "cosine", "data_set": "MNIST"}
    assert own == {k: v for k, v in (TRAINING | shared).items() if k != "lr_milestones"} | told
    found, lines = translate({"pruning_type": "l1", "epochs": "40"})
    always = {k: v for k, v in TRAINING.items() if k not in ("data_set", "lr_milestones", "epochs")}
    assert found == always | shared | {"epochs": "40", "lr_milestones": "20,30"}
    assert "--epochs without a data set: the original script uses --data_set CIFAR100" in lines
    short, lines = translate({"pruning_type": "l1", "epochs": "1", "data_path": "CIFAR10"})
    assert short == {k: v for k, v in always.items() if k != "lr_schedule"} | shared | {
        "epochs": "1", "data_set": "CIFAR10"
    }  # fmt: skip
    assert not any("without a data set" in line for line in lines)


def test_bypass_leaves_the_temperature_and_the_protected_share_of_the_published_script() -> None:
    found = translate({"pruning_type": "l1", "bypass": "True", "T": "3"})[0]
    assert (found["autoconfig"], found["T"], found["keep_share"]) == (False, "3", "0.05")
    assert translate({"pruning_type": "l1", "bypass": "True"})[0]["T"] == "5"
    assert "T" not in translate({"pruning_type": "l1", "bypass": "False"})[0]
    assert translate({"pruning_type": "biased_loss", "bypass": "True"})[0]["use_init"] is True


def test_rates_are_for_the_optimizer_of_the_script_and_milestones_of_ones_own_stay() -> None:
    adam = translate({"pruning_type": "l1", "epochs": "8", "optimizer": "ADAM"})[0]
    assert not {"learning_rate", "l2_reg", "lr_schedule", "lr_milestones"} & adam.keys()
    own = translate({"pruning_type": "l1", "epochs": "2", "lr_milestones": "1"})[0]
    assert (own["lr_schedule"], own["lr_milestones"]) == ("multistep", "1")
    assert "lr_schedule" not in translate({"pruning_type": "l1", "epochs": "often"})[0]


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
    found, lines = translate(flags)
    assert found["thresholds"] == expected
    assert len([line for line in lines if "has no effect" in line]) == told
    assert ("n_rounds" in found) == (given == "default" or int(rounds) == expected.count(",") + 1)


def test_thresholds_of_a_file_of_settings_are_lists() -> None:
    flags = {"pruning_type": "tfo", "epochs": 9, "thresholds": [10, 50], "n_rounds": 2, "prune_percent": 50}
    assert translate(flags)[0]["thresholds"] == "0.1,0.5"
    for shares in ([0.1, 0.5], (0.1, 0.5), "[0.1,0.5]"):
        assert translate(flags | {"thresholds": shares})[0]["thresholds"] == shares
    assert translate(flags | {"n_rounds": "abc"})[0]["n_rounds"] == "abc"  # refused later, as a number


def test_a_published_command_with_thresholds_and_other_numbers_runs(command: Command) -> None:
    words = "--pruning_type mag_based --thresholds [10,50,80] --prune_percent 75 --n_rounds 1 --epochs 5"
    config = command(*words.split()).config
    assert (config.thresholds, config.n_rounds, config.pruning_limit) == ((0.1, 0.5, 0.8), 3, 0.8)
