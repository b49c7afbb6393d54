"""Translation of the command lines of two other pruning programs; their flags are hidden, and each is noted.

These are the scripts of Taylor pruning (arXiv:1906.10771) and of pruning by gradient flow (arXiv:2009.11839). Each
flag is translated to settings, has no effect, or is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.dialects.gradient_flow_defaults import (
    DENSE,
    defaults_there,
    shown,
)
from secateur.framework.settings.dialects.translation import Settings, Translation, put, word
from secateur.framework.settings.field import TRUTH_VALUES, Flag, is_true
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

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
