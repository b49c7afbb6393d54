"""Translation of the command lines of two other pruning programs; their flags are hidden, and each is noted.

These are the scripts of Taylor pruning (arXiv:1906.10771) and of pruning by gradient flow (arXiv:2009.11839). Each
flag is translated to settings, has no effect, or is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.dialects.translation import Settings, Translation, put, word
from secateur.framework.settings.field import TRUTH_VALUES, Flag, is_true
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

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

#: function from the value of a flag to settings
Meaning = Callable[[str], Settings]

TYPES = {
    "mag_based": "MagBased", "l1": "L1", "bn": "BN", "loss_based": "LossBased", "tfo": "TFO",
    "biased_loss": "BiasedLoss", "biased_loss_tracked": "BiasedLossTracked", "fisher": "Fisher",
    "nvidia": "NvidiaFisher", "grasp": "GraspChannel", "grad_preserve": "GradPreserve",
}  # fmt: skip
#: layers that these scripts do not prune: the stem, and without skip connections the last layer of each stage
STEM = ("conv1",)
RESNET_STAGES = tuple(f"layer{stage}.0.conv3" for stage in range(1, 5))


def _torchvision(arch: str, protect: tuple[str, ...] = ()) -> Settings:
    return {"model": "TorchvisionModel", "arch": arch} | ({"protect": protect} if protect else {})


MODELS: dict[str, Settings] = {
    "vgg": {"model": "VGG13"},
    "mobilenet": {"model": "MobileNetV1"},
    "resnet-18": {"model": "ResNet18", "set": ("model.variant=cifar",)},
    "resnet-34": {"model": "ResNet34", "set": ("model.variant=cifar",)},
    "resnet-56": {"model": "ResNet56"},
    "lenet3": {"model": "LeNet5"},
    **{f"resnet{depth}": _torchvision(f"resnet{depth}", STEM) for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}_noskip": _torchvision(f"resnet{depth}", (*STEM, *RESNET_STAGES)) for depth in (50, 101)},
    **{f"densenet{depth}_imagenet": _torchvision(f"densenet{depth}") for depth in (121, 201)},
    "mobilenetv2": _torchvision("mobilenet_v2"),
}


def _number(value: str, flag: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--{flag} must be a number, got {value!r}") from None


def _same(setting: str) -> Meaning:
    return lambda value: {setting: value}


def _switch(flag: str, setting: str, then: Any) -> Meaning:
    return lambda value: {setting: then} if is_true(value, flag) else {}


def _refused(flag: str, reason: str, *, fine: tuple[str, ...] = ("",)) -> Meaning:
    def meaning(value: str) -> Settings:
        if str(value).lower() not in (*fine, *(word for word, true in TRUTH_VALUES.items() if not true)):
            raise UsageError(f"--{flag} {value}: {reason}")
        return {}

    return meaning


def _type(value: str) -> Settings:
    if value not in TYPES:
        raise UsageError(unknown("--pruning_type", value, TYPES))
    return {"prune_criterion": TYPES[value]}


def _percent(value: str) -> Settings:
    share = _number(value, "prune_percent")
    if not 0 <= share < 100:
        raise UsageError(f"--prune_percent must be in [0, 100), got {value}")
    return {"pruning_limit": repr(share / 100)}


def _data(value: str) -> Settings:
    if value.upper() in registry.names("datasets"):
        return {"data_set": value.upper()}
    return {"data_set": "IMAGEFOLDER", "data_dir": value}


def _path(value: str) -> Settings:
    return {} if value in ("", "0") else {"pretrained": value}


#: flag -> translation of its value
FOREIGN: dict[str, Meaning] = {
    "pruning_type": _type,
    "prune_percent": _percent,
    "moment": _same("momentum"),
    "pretrained_path": _path,
    "load_model": _path,
    "data_path": _data,
    "dataset": _data,
    "data": _same("data_dir"),
    "bypass": _switch("bypass", "autoconfig", False),
    "lr": _same("learning_rate"),
    "wd": _same("l2_reg"),
    "lr_decay_every": lambda value: {"lr_schedule": "step", "lr_step": value},
    "lr_decay_scalar": _same("lr_gamma"),
    "no_cuda": _switch("no_cuda", "device", "cpu"),
    "name": _same("run_name"),
    "run_test": _switch("run_test", "eval", True),
    "limit_training_batches": lambda value: {} if value == "-1" else {"limit_train_batches": value},
    "pruning": lambda value: {} if is_true(value, "pruning") else dict(DENSE),
    "no_grad_clip": _switch("no_grad_clip", "grad_clip", "0"),
    "pruning_step": _same("frequency"),
    "pt": _same("pruning_threshold"),
    "pruning_fixed_criteria": lambda value: {"fixed_criteria": is_true(value, "pruning_fixed_criteria")},
    "fixed_network": _refused("fixed_network", "to compare scores without training use the oracle study"),
    "use_test_as_train": _refused("use_test_as_train", "a network is never trained on the test set"),
    "zero_lr_for_epochs": _refused(
        "zero_lr_for_epochs", "for steps that only score use --start_pruning_after_n_iterations", fine=("-1",)
    ),
    "pruning_mask_from": _refused("pruning_mask_from", "scores are never read from a pickle"),
    "starting_neuron": _refused("starting_neuron", "pruned channels are counted automatically"),
}
#: flags without effect, with the reason
NOTHING_TO_DO = {
    "test_batch_size": "evaluations use --batch_size",
    "log_interval": "metrics.jsonl has a row for each epoch, and --eval_freq adds more",
    "get_flops": "the report always has the multiply-adds",
    "compute_flops": "the report always has the multiply-adds",
    "get_inference_time": "the report always has the latency",
    "mgpu": "a run uses one device",
    "world_size": "a run uses one device",
    "tensorboard": "tensorboard/ is always written",
    "save_models": "checkpoints are always written",
    "dynamic_network": "channels are always cut out of the tensors",
}
#: flags that identify these scripts, which train with SGD
THEIRS = ("pruning_type", "moment", "lr", "wd", "lr_decay_every")


FLAGS: dict[str, Flag] = {name: word(name, bare="true") for name in (*FOREIGN, *NOTHING_TO_DO)}
BARE = {"augment": "true"}
AUGMENTS = {"true": "crop_flip", "false": "none"}


def translate(flags: Mapping[str, Any], file: Mapping[str, Any]) -> Translation:
    """Translate the flags of these programs, see `Dialect.translate`."""
    ours = {name: value for name, value in flags.items() if name not in FLAGS}
    notes = []
    network = MODELS.get(str(ours.get("model", "")))
    if network is not None:
        notes.append(f"--model {ours.pop('model')} is " + shown(network))
        for setting, value in network.items():
            ours[setting] = (*value, *ours.get("set", ())) if setting == "set" else ours.get(setting, value)
    for name in [name for name in FOREIGN if name in flags]:
        meant = FOREIGN[name](str(flags[name]))
        for setting, value in meant.items():
            put(ours, name, setting, value)
        if meant or name != "pruning":  # which may choose defaults, see below
            notes.append(f"--{name} {flags[name]}: " + (shown(meant) if meant else "no effect"))
    defaults, why, more = defaults_there(flags, ours, file)
    notes += more
    if any(name in flags for name in THEIRS):
        defaults, why = {"optimizer": "SGD"} | defaults, why or "as in the original script of these flags"
    _use_our_meanings(ours)
    notes += [f"--{name} has no effect: {reason}" for name, reason in NOTHING_TO_DO.items() if name in flags]
    return Translation(ours, defaults, why, notes)


def _use_our_meanings(ours: Settings) -> None:
    """Replace the values of flags of Secateur that are other kinds of flags in these scripts."""
    word = str(ours.get("augment", "")).lower()
    if word in AUGMENTS:
        ours["augment"] = AUGMENTS[word]
    word = str(ours.get("track_batches", "")).lower()
    if word in AUGMENTS:  # their README uses this name for a switch
        del ours["track_batches"]
        ours["track_importance"] = word == "true"
    if ours.get("alpha") == "default":
        del ours["alpha"]


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
