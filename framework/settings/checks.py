"""Checks of a config before a model is built or a folder is created."""

import re
from typing import Any

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.plugins.source import check_source
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.run_config import FLAGS, KINDS, PLUGIN_OF, PRESETS, RunConfig
from secateur.framework.settings.schedule import check_schedule
from secateur.framework.settings.unused_flags import STRICT
from secateur.utils.errors import UsageError
from secateur.utils.suggest import did_you_mean, one_line, unknown

DEVICES = re.compile(r"auto|cpu|mps|cuda(:(?P<index>\d{1,9}))?")
ROUND_TO = re.compile(r"0{0,9}[1-9][0-9]{0,5}")
# Constructor arguments that `--set` cannot give, and the flag to use instead; "": the run sets them.
FIXED: dict[str, dict[str, str]] = {
    "optimizer": {"params": "", "fused": "fused"},
    "model": {"in_channels": "", "num_classes": "num_classes", "image_size": "image_size"},
    "trainer": {"parts": "", "settings": ""},
}


def check_config(config: RunConfig, decisions: Decisions) -> None:
    """Raise UsageError of one line for the first invalid setting."""
    for name, flag in FLAGS.items():
        if name in KINDS:
            kind, plugin = KINDS[name], getattr(config, name)
            registry.check_name(kind, plugin)
            if kind != "optimizers":
                check_source(kind, plugin, registry.file(kind, plugin))
        else:
            flag.check(getattr(config, name))
    _check_combinations(config)
    if not config.eval:
        _check_presets(config)
        _check_trainer(config)
    _check_pruning(config)
    if not config.eval:
        check_schedule(config)
    _check_options(config, decisions)
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


def _check_combinations(config: RunConfig) -> None:
    if config.lr_schedule == "multistep" and not config.lr_milestones:
        raise UsageError("--lr_schedule multistep needs --lr_milestones, for example 30,60,80")
    if registry.describe("datasets", config.data_set).needs_folder and config.data_dir is None:
        raise UsageError(f"--data_set {config.data_set} needs --data_dir, a folder with train/ and test/ or val/")
    if config.input_dim and (len(config.input_dim) != 3 or config.input_dim[1] != config.input_dim[2]):
        given = ",".join(map(str, config.input_dim))
        raise UsageError(f"--input_dim {given}: channels, height and width of a square image, for example 3,32,32")
    if config.image_size is not None and config.input_dim and config.input_dim[1] != config.image_size:
        raise UsageError("--input_dim and --image_size contradict each other")
    if config.pretrained is not None and config.checkpoint_name is not None:
        raise UsageError("--pretrained and --checkpoint_name exclude each other: both set the initial weights")
    if config.new_head and config.pretrained is None:
        raise UsageError("--new_head needs --pretrained: a new network has a new last layer already")
    for name, flag in FLAGS.items():
        if flag.tests and getattr(config, name) and not config.eval:
            raise UsageError(f"--{name} needs --eval: it applies to the evaluation of a checkpoint")
    if config.eval and config.pretrained is not None:
        raise UsageError("--eval reads a checkpoint: give --checkpoint_name, not --pretrained")
    presets = [f"--{name}" for name in PRESETS if getattr(config, name)]
    if len(presets) > 1:
        raise UsageError(f"{' and '.join(presets)} exclude each other: each chooses the loss")
    if config.checkpoint_model is not None and config.checkpoint_name is None and not config.eval:
        raise UsageError("--checkpoint_model needs --checkpoint_name, or --eval for the newest run")


def _check_presets(config: RunConfig) -> None:
    """Check that a preset with a trainer is used with its plug-ins, and these only with the preset."""
    for preset, plugins in PRESETS.items():
        for name, needed in plugins.items() if "train_scheme" in plugins else ():
            given = getattr(config, name)
            fits = registry.derives(KINDS[name], given, needed)
            if getattr(config, preset) and not fits:
                raise UsageError(f"--{preset} prunes by trained gates: it needs --{name} {needed}, not {given}")
            prunes = name != "prune_criterion" or registry.describe("criterions", given).prunes
            if not getattr(config, preset) and fits and prunes:
                raise UsageError(f"--{name} {given} is for networks with gates: it needs --{preset}")


def _check_trainer(config: RunConfig) -> None:
    """Check that a criterion that needs a certain trainer is used with it."""
    name, given = config.prune_criterion, config.train_scheme
    needed = registry.describe("criterions", name).trainer
    if needed and not registry.derives("trainers", given, needed):
        raise UsageError(f"--prune_criterion {name} needs --train_scheme {needed}, not {given}")


def _check_pruning(config: RunConfig) -> None:
    """Check what is not checked with the pruning step, whose own errors name the flags, see `in_flags`."""
    if config.round_to != "auto" and not ROUND_TO.fullmatch(config.round_to):
        raise UsageError(
            f"--round_to must be a number from 1 to 999999, or auto, got {one_line(config.round_to, 40)}"
        )
    name = config.prune_criterion
    granularity = registry.describe("criterions", name).granularity
    if not config.masking and granularity != "weight":
        raise UsageError(f"--no_masking is for weight criterions; {name} removes channels permanently")
    if config.outer_layer_pruning and granularity == "channel" and not config.eval:
        from secateur.framework.pruning.scoring.criterion import Criterion

        criterion: Any = registry.get("criterions", name)
        if criterion.input_scores is Criterion.input_scores:
            raise UsageError(
                f"--outer_layer_pruning: {name} cannot rank the inputs of the network (it lacks input_scores)"
            )


def _check_options(config: RunConfig, decisions: Decisions) -> None:
    """Check the options of plug-ins; imports only plug-ins with given options."""
    for group, options in config.set.items():
        for option in options:
            _check_option(config, group, option)
    for name, flag in FLAGS.items():
        if flag.only_reader in STRICT and getattr(config, name) not in (None, (), False):
            _check_shorthand(config, name, flag.only_reader, decisions)
    for group in ("model", "trainer"):
        if config.asked_options(group) and not (config.eval and group == "trainer"):
            cls = registry.get(KINDS[PLUGIN_OF[group]], getattr(config, PLUGIN_OF[group]))
            if hasattr(cls, "check_options"):  # of a plug-in that checks them before it is built
                cls.check_options(**config.options(group))


def _check_shorthand(config: RunConfig, name: str, group: str, decisions: Decisions) -> None:
    """Check that the plug-in has the option that a flag sets, and that `--set` does not contradict the flag."""
    if group == ("criterion" if config.eval else "tester") or name not in decisions.given and group == "tester":
        return
    option, plugin = FLAGS[name].readers[group], getattr(config, PLUGIN_OF[group])
    cls = registry.get(KINDS[PLUGIN_OF[group]], plugin)
    if option not in option_names(cls):
        weights = name in ("use_l2", "use_init")
        if not (weights and callable(getattr(cls, "element_scores", None))):
            meaning, _, _ = FLAGS[name].help.partition("; default")
            lacks = "scores of individual weights" if weights else f"such option: {meaning}"
            raise UsageError(f"--{name}: the {group} {plugin} has no {lacks}")
    if config.set.get(group, {}).get(option, getattr(config, name)) != getattr(config, name):
        raise UsageError(f"--{name} and --set {group}.{option} contradict each other")


def _check_option(config: RunConfig, group: str, option: str) -> None:
    name: str = getattr(config, PLUGIN_OF[group])
    taken = dict(FIXED.get(group, {}))
    if group not in STRICT:
        taken |= {flag.readers[group]: flag.name for flag in FLAGS.values()
                  if group in flag.readers and config.has_effect(flag.name)}  # fmt: skip
    if option in taken:
        instead = f"use --{taken[option]}" if taken[option] else "it is set by the run"
        raise UsageError(f"--set {group}.{option}: {instead}")
    known = option_names(registry.get(KINDS[PLUGIN_OF[group]], name))
    allowed = [other for other in known if other not in taken]
    if not allowed:
        raise UsageError(f"--set {group}.{option}: {name} has no options")
    if option not in allowed:
        hint = did_you_mean(option, allowed)
        raise UsageError(f"--set {group}.{option}: unknown option of {name}{hint} (one of {', '.join(allowed)})")
