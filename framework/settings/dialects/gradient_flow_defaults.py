"""Defaults of the scripts that the flags of gradient_flow.py come from."""

from collections.abc import Mapping
from typing import Any

from secateur.framework.settings.dialects.translation import Settings
from secateur.framework.settings.field import is_true

#: networks of the script that prunes only with `--pruning True`, by default with method 0
ON_REQUEST = ("lenet3", "resnet50_noskip", "resnet101_noskip", "densenet121_imagenet", "densenet201_imagenet")
DENSE: Settings = {"prune_criterion": "EmptyCrit"}
METHOD_0: Settings = {"prune_criterion": "TaylorWeight", "schedule": "iterative"}
#: flags that select the method, and flags that have no effect without pruning
METHOD_FLAGS = ("prune_criterion", "pruning_method", "pruning_config")
HOW = (
    "pruning_method", "pruning_config", "pruning_momentum", "pruning_threshold", "frequency",
    "prune_per_iteration", "fixed_layer", "prune_neurons_max", "start_pruning_after_n_iterations",
    "maximum_pruning_iterations", "fixed_criteria",
)  # fmt: skip
#: data set and training of the script of gradient flow
TRAINING: Settings = {
    "data_set": "CIFAR100", "augment": "crop_flip", "seed": "0", "preserve_moment": False,
    "epochs": "160", "learning_rate": "0.1", "l2_reg": "1e-4", "lr_schedule": "multistep",
    "lr_milestones": "80,120",
}  # fmt: skip
#: the part of it that is for SGD only
RATES = ("learning_rate", "l2_reg", "lr_schedule", "lr_milestones")


def shown(settings: Settings) -> str:
    """Return settings in the form of a command line."""
    words = {name: " ".join(value) if name == "set" else value for name, value in settings.items()}
    return " ".join(f"--{name} {value}" for name, value in words.items())


def defaults_there(
    flags: Mapping[str, Any], ours: Settings, file: Mapping[str, Any]
) -> tuple[Settings, str, list[str]]:
    """Return the defaults of the original scripts, the reason, and notes; settings without effect are removed.

    Args:
        flags: The flags as given.
        ours: The flags with their translations; the defaults apply to the others.
        file: Values of the config file, which determines how to prune if there is one.
    """
    if "pruning" in flags and not is_true(str(flags["pruning"]), "pruning"):
        idle = [name for name in HOW if ours.pop(name, None) is not None]
        return {}, "", [f"--{name} has no effect: nothing is pruned" for name in idle]
    chosen = bool(file) or any(ours.get(name) is not None for name in METHOD_FLAGS)
    if "pruning" in flags and not chosen:
        return dict(METHOD_0), "as in the original script of --pruning", []
    if flags.get("model") in ON_REQUEST and not chosen:
        return dict(DENSE), f"the original script of --model {flags['model']} prunes only with --pruning True", []
    if "pruning_type" not in flags:
        return {}, "", []
    notes = _their_thresholds(flags, ours)
    defaults, given = _training({**file, **flags}), {**file, **ours}
    own = {"lr_milestones"} if "lr_schedule" in given else set()
    own |= set(RATES) if str(given.get("optimizer", "SGD")).upper() != "SGD" else set()
    defaults = {name: value for name, value in defaults.items() if name not in {*given, *own}}
    if "data_set" not in {*given, *defaults}:
        notes.append(f"--epochs without a data set: the original script uses --data_set {TRAINING['data_set']}")
    return defaults, "as in the original script of --pruning_type", notes


def _training(flags: Mapping[str, Any]) -> Settings:
    """Return the training settings of the script of gradient flow.

    With given epochs the data set is not set, and the learning rate decays at the same shares of the epochs.
    `--bypass` disables autoconfig, so the defaults that it does not disable in the script are set here.
    """
    filled = dict(TRAINING)
    if "epochs" in flags:
        whole, given = int(filled.pop("epochs")), str(flags["epochs"])
        epochs = int(given) if given.isdecimal() else 0
        steps = [epochs * int(at) // whole for at in filled["lr_milestones"].split(",")]
        filled["lr_milestones"] = ",".join(map(str, steps))
        short = not 0 < steps[0] < steps[1] and "lr_milestones" not in flags
        drop = {"data_set"} | ({"lr_schedule", "lr_milestones"} if short else set())
        filled = {name: value for name, value in filled.items() if name not in drop}
    if "bypass" in flags and is_true(str(flags["bypass"]), "bypass"):
        filled |= {"T": "5", "keep_share": "0.05"}
        filled |= {"use_init": True} if flags["pruning_type"] == "biased_loss" else {}
    return filled


def _their_thresholds(flags: Mapping[str, Any], found: Settings) -> list[str]:
    """Convert thresholds, which are percentages from 1 on; they override the sparsity and the rounds."""
    try:
        numbers = [float(part) for part in str(found["thresholds"]).strip("[]() ").split(",")]
    except (KeyError, ValueError):  # not given, "default", or invalid, which is checked later
        return []
    if any(number >= 1 for number in numbers):
        numbers = [number / 100 for number in numbers]
        found["thresholds"] = ",".join(map(repr, numbers))
    idle = []
    rounds = str(found.get("n_rounds", ""))
    if rounds.isdecimal() and int(rounds) != len(numbers):
        idle.append(f"--n_rounds {found.pop('n_rounds')} has no effect: --thresholds are {len(numbers)} rounds")
    if "prune_percent" in flags and abs(float(found["pruning_limit"]) - numbers[-1]) > 1e-9:
        del found["pruning_limit"]
        idle.append(f"--prune_percent has no effect: the last of --thresholds is {100 * numbers[-1]:g}")
    return idle
