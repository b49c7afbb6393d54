"""Flags of other systems that are spelled differently here: each is accepted, and one line says what to write.

Several of them did the opposite of what their name says; here they do what it says.
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
    """One old flag: the setting it stands for, what it gives it, how it is written now, and what was wrong."""

    setting: str
    value: Any
    now: str
    remark: str = ""


#: switches by their old names
SWITCHES = {
    "disable_autoconfig": Old("autoconfig", False, "--no_autoconfig"),
    "disable_masking": Old("masking", False, "--no_masking"),
    "disable_histograms": Old("histograms", False, "--no_histograms"),
    "disable_saliency": Old("saliency", False, "--no_saliency"),
    "disable_confusion": Old("confusion", False, "--no_confusion"),
    "disable_weightplot": Old("plot_weights", False, "--no_plot_weights", "it used to switch them on"),
    "disable_netplot": Old("plot_net", False, "--no_plot_net", "it used to switch it on"),
    "disable_cuda_benchmark": Old("cudnn_benchmark", False, "--no_cudnn_benchmark", "it used to end determinism"),
}
#: switches that nothing needs any more, and why
NEEDLESS_SWITCHES = {"pruned": "the checkpoint says itself what was pruned"}
#: flags with a value by their old names
VALUES = {"output_dim": "num_classes"}
#: flags that nothing needs any more, and why
NEEDLESS = {"N": "the number of training samples is the data set's"}
#: the flag of another system that names a file of a network, or a folder
MODEL_PATH = "model_path"
OLD = {*SWITCHES, *VALUES, *NEEDLESS, *NEEDLESS_SWITCHES, MODEL_PATH}
TRUTH = {"true": True, "false": False}


def translated(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The flags by today's names, and a line for each old one.

    Raises UsageError where an old flag and today's contradict each other.
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
    lines += [f"--{name} has no effect: {why}" for name, why in needless.items() if name in flags]
    return found, lines


def _model_path(found: dict[str, Any], value: str) -> list[str]:
    """A checkpoint of ours in its run folder, or the folder itself; "0" is what meant none."""
    if value == "0":
        return ["--model_path 0 has no effect: the newest checkpoint is taken anyway"]
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
    """UsageError unless the file is safetensors, in the models/ of a run folder."""
    if is_from_torch(path):
        raise UsageError(f"--model_path {path} was pickled by torch.save, and reading a stranger's pickle may run "
                         "code: only checkpoints of Secateur (safetensors) are read")  # fmt: skip
    if not is_safetensors(path):
        raise UsageError(f"--model_path {path} is no safetensors file, which checkpoints of Secateur are")
    if path.suffix != SUFFIX or path.absolute().parent.name != "models":
        raise UsageError(f"--model_path {path} lies in no run folder: RUN/models/NAME{SUFFIX} is needed")


def without_truth_values(arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """`--flag True` and `--flag=True`, as others write switches, become `--flag`; with False `--no_flag`."""
    found: list[str] = []
    last = ""  # the switch that this word may belong to
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
        raise UsageError(f"--{name} and --{setting} say different things")


def use_pruning_rate(config: RunConfig) -> None:
    """`--pruning_rate` alone is UnstructuredRandom's `--pruning_limit`; elsewhere a note says it does nothing."""
    rate, config.pruning_rate = config.pruning_rate, None
    if rate is None:
        return
    if config.prune_criterion == "UnstructuredRandom" and "pruning_limit" not in config.given:
        if not 0 <= rate < 1:
            raise UsageError(f"--pruning_rate must be in [0, 1), got {rate:g}")
        config.pruning_limit = rate
        config.given.add("pruning_limit")
        config.notes.append(f"--pruning_rate {rate:g} is taken as --pruning_limit {rate:g}")
    else:
        config.notes.append(f"--pruning_rate has no effect: --pruning_limit {config.pruning_limit:g} says how far")
