"""Translation of the flags of SNIP-it; each is accepted, with a note on the current spelling.

Several of these flags had the opposite effect of their name; here they have the effect of their name.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from secateur.framework.settings.run_config import RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.files.formats import SUFFIX, is_from_torch, is_safetensors


class Old(NamedTuple):
    """A deprecated flag: its setting and value, the current spelling, and a remark."""

    setting: str
    value: Any
    now: str
    remark: str = ""


#: deprecated switches
SWITCHES = {
    "disable_autoconfig": Old("autoconfig", False, "--no_autoconfig"),
    "disable_masking": Old("masking", False, "--no_masking"),
    "disable_histograms": Old("histograms", False, "--no_histograms"),
    "disable_saliency": Old("saliency", False, "--no_saliency"),
    "disable_confusion": Old("confusion", False, "--no_confusion"),
    "disable_weightplot": Old("plot_weights", False, "--no_plot_weights", "it used to enable them"),
    "disable_netplot": Old("plot_net", False, "--no_plot_net", "it used to enable it"),
    "disable_cuda_benchmark": Old(
        "cudnn_benchmark", False, "--no_cudnn_benchmark", "it used to disable determinism"
    ),
}
#: obsolete switches, with the reason
NEEDLESS_SWITCHES = {"pruned": "the checkpoint records what was pruned"}
#: deprecated flags with a value
VALUES = {"output_dim": "num_classes"}
#: obsolete flags with a value, with the reason
NEEDLESS = {"N": "the number of training samples is that of the data set"}
#: flag of SNIP-it for the file or the folder of a network
MODEL_PATH = "model_path"
OLD = {*SWITCHES, *VALUES, *NEEDLESS, *NEEDLESS_SWITCHES, MODEL_PATH}
TRUTH = {"true": True, "false": False}


def translated(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the flags under their current names, and a note for each deprecated one.

    Raises UsageError if a deprecated flag contradicts a current one.
    """
    found = {name: value for name, value in flags.items() if name not in OLD}
    lines = []
    for name, old in SWITCHES.items():
        if name in flags:
            _put(found, name, old.setting, old.value)
            remark = f" ({old.remark})" if old.remark else ""
            lines.append(f"deprecated: --{name}{remark}; write {old.now}")
    for name, setting in VALUES.items():
        if name in flags:
            _put(found, name, setting, flags[name])
            lines.append(f"deprecated: --{name}; write --{setting}")
    if MODEL_PATH in flags:
        lines += _model_path(found, flags[MODEL_PATH])
    needless = NEEDLESS | NEEDLESS_SWITCHES
    lines += [f"--{name} has no effect: {reason}" for name, reason in needless.items() if name in flags]
    return found, lines


def _model_path(found: dict[str, Any], value: str) -> list[str]:
    """Translate the path of a checkpoint in its run folder, or of the folder; "0" stands for none."""
    if value == "0":
        return ["--model_path 0 has no effect: the default is the newest checkpoint"]
    path = Path(value)
    if os.path.isfile(path):
        _check_checkpoint(path)
        _put(found, MODEL_PATH, "checkpoint_name", str(path.absolute().parent.parent))
        _put(found, MODEL_PATH, "checkpoint_model", path.stem)
        return [f"deprecated: --model_path; write --checkpoint_name {path.absolute().parent.parent} "
                f"--checkpoint_model {path.stem}"]  # fmt: skip
    if not os.path.isdir(path) and path.suffix in (SUFFIX, ".pth", ".pt"):
        raise UsageError(f"--model_path {value}: no such file")
    _put(found, MODEL_PATH, "checkpoint_name", value)
    return [f"deprecated: --model_path; write --checkpoint_name {value}"]


def _check_checkpoint(path: Path) -> None:
    """Raise UsageError unless the file is a safetensors file in the models/ of a run folder."""
    if is_from_torch(path):
        raise UsageError(f"--model_path {path} was pickled by torch.save, and loading a pickle may run code: "
                         "only checkpoints of Secateur (safetensors) are loaded")  # fmt: skip
    if not is_safetensors(path):
        raise UsageError(f"--model_path {path} is not a safetensors file, the format of checkpoints")
    if path.suffix != SUFFIX or path.absolute().parent.name != "models":
        raise UsageError(f"--model_path {path} is not in a run folder: RUN/models/NAME{SUFFIX} is needed")


def without_truth_values(arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """Convert `--flag True` and `--flag=True` to `--flag`, and with False to `--no_flag`."""
    found: list[str] = []
    last = ""  # the switch that this word may be the value of
    for word in arguments:
        name, equals, value = word.removeprefix("--").partition("=") if word.startswith("--") else ("", "", "")
        if last and word.lower() in TRUTH:
            found[-1:] = _switch(last, TRUTH[word.lower()])
        elif equals and name in switches and value.lower() in TRUTH:
            found += _switch(name, TRUTH[value.lower()])
        else:
            found.append(word)
        last = name if name in switches and not equals else ""
    return found


def _switch(name: str, value: bool) -> list[str]:
    if value:
        return [f"--{name}"]
    return [] if name in {*SWITCHES, *NEEDLESS_SWITCHES} else [f"--no_{name}"]


def _put(found: dict[str, Any], name: str, setting: str, value: Any) -> None:
    if found.setdefault(setting, value) != value:
        raise UsageError(f"--{name} and --{setting} contradict each other")


def use_pruning_rate(config: RunConfig) -> None:
    """Use `--pruning_rate` as `--pruning_limit` of UnstructuredRandom; otherwise note that it has no effect."""
    rate, config.pruning_rate = config.pruning_rate, None
    if rate is None:
        return
    if config.prune_criterion == "UnstructuredRandom" and "pruning_limit" not in config.given:
        if not 0 <= rate < 1:
            raise UsageError(f"--pruning_rate must be in [0, 1), got {rate:g}")
        config.pruning_limit = rate
        config.given.add("pruning_limit")
        config.notes.append(f"--pruning_rate {rate:g} is used as --pruning_limit {rate:g}")
    else:
        config.notes.append(f"--pruning_rate has no effect: --pruning_limit is {config.pruning_limit:g}")
