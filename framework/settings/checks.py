"""Checks of a config before a model is built or a folder is created."""

from __future__ import annotations

import re
from typing import Any

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.plugins.source import check_source
from secateur.framework.settings.presets import MODES, check_modes
from secateur.framework.settings.run_config import EXTRAS, FLAGS, GROUPS, KINDS, SHORT, TESTER_FLAGS, RunConfig
from secateur.framework.settings.schedule_flags import check_criterion_flags, check_schedule
from secateur.utils.errors import UsageError
from secateur.utils.suggest import nearest, one_line, unknown
from secateur.utils.torchvision_names import check_arch

DEVICES = re.compile(r"auto|cpu|mps|cuda(:(?P<index>\d{1,9}))?")
ROUND_TO = re.compile(r"0{0,9}[1-9][0-9]{0,5}")
# Constructor arguments that a flag sets (None: the framework sets them), by group of --set.
TAKEN: dict[str, dict[str, str | None]] = {
    "optimizer": {"params": None, "lr": "learning_rate", "weight_decay": "l2_reg", "fused": "fused"},
    "model": {"in_channels": None, "num_classes": "num_classes", "image_size": "image_size"},
    "loss": {name: name for name in ("l1_reg", "lp_reg", "label_smoothing", "hoyer_reg")},
    "trainer": {"parts": None, "settings": None, "l0_reg": "l0_reg", "l2_reg": "l2_reg", "beta_ema": "beta_ema"},
    "dataset": {"data_dir": "data_dir", "download": "download"},
}


HINTS = {"arch": "; it is for --model TorchvisionModel"}


def check_config(config: RunConfig) -> None:
    """Raise UsageError of one line for the first invalid setting; the config is not changed."""
    for name, flag in FLAGS.items():
        if name in KINDS:
            _check_plugin(KINDS[name], getattr(config, name))
        elif name != "set":
            flag.check(getattr(config, name))
    _check_arch(config)
    _check_combinations(config)
    if not config.eval:
        _check_l0(config)
        _check_trainer(config)
    _check_pruning(config)
    if not config.eval:
        check_schedule(config)
    _check_options(config)
    check_device(config.device)  # last: it may import torch


def check_device(device: str) -> None:
    """Raise UsageError unless `device` is a known and available device."""
    match = DEVICES.fullmatch(device)
    if match is None:
        raise UsageError(unknown("device", device, ("auto", "cpu", "cuda", "cuda:N", "mps")))
    if device in ("auto", "cpu"):
        return
    import torch

    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: this machine or torch has no MPS device; try --device auto")
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(f"--device {device}: this machine or torch has no CUDA device; try --device auto")
    if int(match["index"] or 0) >= count:
        raise UsageError(f"--device {device}: there are {count} CUDA devices, the last is cuda:{count - 1}")


def _check_plugin(kind: str, name: str) -> None:
    registry.check_name(kind, name)
    if kind != "optimizers":
        check_source(kind, name, registry.file(kind, name))


def _check_arch(config: RunConfig) -> None:
    """Check the name of a torchvision network against the source of torchvision, without importing it."""
    arch = config.options("model").get("arch")
    if config.model == "TorchvisionModel" and arch is not None:
        check_arch(arch)


def _check_combinations(config: RunConfig) -> None:
    if config.lr_schedule == "multistep" and not config.lr_milestones:
        raise UsageError("--lr_schedule multistep needs --lr_milestones, for example 30,60,80")
    if config.data_set == "IMAGEFOLDER" and config.data_dir is None:
        raise UsageError("--data_set IMAGEFOLDER needs --data_dir, a folder with train/ and test/ or val/")
    if config.input_dim and (len(config.input_dim) != 3 or config.input_dim[1] != config.input_dim[2]):
        given = ",".join(map(str, config.input_dim))
        raise UsageError(f"--input_dim {given}: channels, height and width of a square image, for example 3,32,32")
    if config.image_size is not None and config.input_dim and config.input_dim[1] != config.image_size:
        raise UsageError("--input_dim and --image_size contradict each other")
    if config.pretrained is not None and config.checkpoint_name is not None:
        raise UsageError("--pretrained and --checkpoint_name exclude each other: both set the initial weights")
    if config.new_head and config.pretrained is None:
        raise UsageError("--new_head needs --pretrained: a new network has a new last layer already")
    for name in EXTRAS:
        if getattr(config, name) and not config.eval:
            raise UsageError(f"--{name} needs --eval: the report of a training run always has these numbers")
    if config.eval and config.pretrained is not None:
        raise UsageError("--eval reads a checkpoint: give --checkpoint_name, not --pretrained")
    check_modes(config)
    if config.checkpoint_model is not None and config.checkpoint_name is None and not config.eval:
        raise UsageError("--checkpoint_model needs --checkpoint_name, or --eval for the newest run")


def _check_l0(config: RunConfig) -> None:
    """Check that --l0 is used with its trainer and loss and without a criterion, and these only with --l0."""
    for name, needed in MODES["l0"].items():
        given = getattr(config, name)
        fits = registry.derives(KINDS[name], given, needed)
        if config.l0 and not fits:
            raise UsageError(f"--l0 prunes by trained gates: it needs --{name} {needed}, not {given}")
        if not config.l0 and fits and needed != "EmptyCrit":
            raise UsageError(f"--{name} {given} is for networks with gates: it needs --l0")


def _check_trainer(config: RunConfig) -> None:
    """Check that a criterion that needs a certain trainer is used with it."""
    name, given = config.prune_criterion, config.train_scheme
    needed = registry.describe("criterions", name).trainer
    if needed and not registry.derives("trainers", given, needed):
        raise UsageError(f"--prune_criterion {name} needs --train_scheme {needed}, not {given}")


#: flags that only channel criterions support, and their defaults
FOR_CHANNELS = {
    "min_channels": 1, "keep_share": 0.0, "round_to": "1", "attention": "dims", "inexact": False, "fold": False,
}  # fmt: skip


def _check_pruning(config: RunConfig) -> None:
    name = config.prune_criterion
    if config.round_to != "auto" and not ROUND_TO.fullmatch(config.round_to):
        raise UsageError(
            f"--round_to must be a number from 1 to 999999, or auto, got {one_line(config.round_to, 40)}"
        )
    granularity = registry.describe("criterions", name).granularity
    if not config.masking and granularity != "weight":
        raise UsageError(f"--no_masking is for weight criterions; {name} removes channels permanently")
    if granularity == "channel":
        if config.outer_layer_pruning and not config.eval:
            _check_ranks_inputs(name)
        if config.scope == "row":
            raise UsageError(
                f"--scope row is for weight criterions; {name} prunes channels (global, layer or isomorphic)"
            )
    elif granularity == "both":
        if config.scope not in (None, "global"):
            raise UsageError(
                f"--scope {config.scope}: {name} ranks weights and channels together, which requires scope global"
            )
        if config.budget not in (None, "weights"):
            raise UsageError(f"--budget {config.budget} is for channel criterions; {name} prunes weights too")
        if config.round_to != "1":
            raise UsageError(f"--round_to is for channel criterions; {name} prunes weights too")
    elif granularity == "weight" and name != "EmptyCrit":
        if config.scope == "isomorphic":
            raise UsageError(f"--scope isomorphic is for channel criterions; {name} prunes weights")
        if config.budget not in (None, "weights"):
            raise UsageError(f"--budget {config.budget} is for channel criterions; {name} prunes weights")
        for flag, default in FOR_CHANNELS.items():
            if getattr(config, flag) != default:
                raise UsageError(f"--{flag} is for channel criterions; {name} prunes weights")


def _check_ranks_inputs(name: str) -> None:
    from secateur.framework.pruning.scoring.criterion import Criterion

    criterion: Any = registry.get("criterions", name)
    if criterion.input_scores is Criterion.input_scores:
        raise UsageError(
            f"--outer_layer_pruning: {name} cannot rank the inputs of the network (it lacks input_scores)"
        )


def _check_options(config: RunConfig) -> None:
    """Check the options of plug-ins; imports only plug-ins with given options."""
    for group, options in config.set.items():
        for option in options:
            if group not in GROUPS:
                raise UsageError(unknown("group of --set", group, GROUPS))
            _check_option(group, option, getattr(config, GROUPS[group]))
    _check_tester_flags(config)
    if not config.eval:
        check_criterion_flags(config)
    for name in SHORT:
        given = getattr(config, name)
        if given is None:
            continue
        if name not in option_names(registry.get("models", config.model)):
            raise UsageError(f"--{name}: {config.model} has no such option{HINTS.get(name, '')}")
        if config.set.get("model", {}).get(name, given) != given:
            raise UsageError(f"--{name} and --set model.{name} contradict each other")


def _check_tester_flags(config: RunConfig) -> None:
    """Check that the tester has the options of its shorthand flags."""
    for flag in TESTER_FLAGS:
        if flag not in config.given or not getattr(config, flag):
            continue
        if config.set.get("tester", {}).get(flag, getattr(config, flag)) != getattr(config, flag):
            raise UsageError(f"--{flag} and --set tester.{flag} contradict each other")
        if flag not in option_names(registry.get("testers", config.test_scheme)):
            raise UsageError(f"--{flag}: the tester {config.test_scheme} has no such option")


def _check_option(group: str, option: str, name: str) -> None:
    taken = dict(TAKEN.get(group, {}))
    if name == "SGD":  # --momentum is for SGD only
        taken["momentum"] = "momentum"
    if option in taken:
        instead = f"use --{taken[option]}" if taken[option] else "it is set by the run"
        raise UsageError(f"--set {group}.{option}: {instead}")
    known = option_names(registry.get(KINDS[GROUPS[group]], name))
    allowed = [other for other in known if other not in taken]
    if not allowed:
        raise UsageError(f"--set {group}.{option}: {name} has no options")
    if option not in allowed:
        match = nearest(option, allowed)
        hint = f": did you mean '{match}'?" if match else ""
        raise UsageError(f"--set {group}.{option}: unknown option of {name}{hint} (one of {', '.join(allowed)})")
