"""Translation of the flags of SNIP-it; each is accepted, with a note on the current spelling.

Several of these flags had the opposite effect of their name; here they have the effect of their name.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.framework.settings.dialects.translation import Settings, Translation, put, word
from secateur.framework.settings.field import Flag
from secateur.framework.settings.run_config import FLAGS as OURS
from secateur.utils.errors import UsageError
from secateur.utils.files.regular_file import SUFFIX, is_from_torch, is_safetensors

#: deprecated switch -> the setting that it switches off, and a remark
SWITCHES = {
    "disable_autoconfig": ("autoconfig", ""),
    "disable_masking": ("masking", ""),
    "disable_histograms": ("histograms", ""),
    "disable_saliency": ("saliency", ""),
    "disable_confusion": ("confusion", ""),
    "disable_weightplot": ("plot_weights", " (it used to enable them)"),
    "disable_netplot": ("plot_net", " (it used to enable it)"),
    "disable_cuda_benchmark": ("cudnn_benchmark", " (it used to disable determinism)"),
}
#: flag -> the setting of the same meaning
RENAMED = {"output_dim": "num_classes", "rewind_epoch": "rewind_to"}
#: flags without effect, with the reason
NEEDLESS = {
    "N": "the number of training samples is that of the data set",
    "pruned": "the checkpoint records what was pruned",
}
#: a share like --pruning_rate and --growing_rate there
SHARE = OURS["pruning_limit"]
#: the criterion that reads --pruning_rate there
WITH_RATE = "UnstructuredRandom"
FLAGS: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        *(word(name, switch=True) for name in (*SWITCHES, "pruned")),
        *(word(name) for name in (*RENAMED, "N", "model_path")),
        word("pruning_rate", f"--pruning_limit for {WITH_RATE}; otherwise ignored"),
        word("growing_rate", "regrowth of weights, which is not supported: only 0"),
    )
}


def translate(flags: Mapping[str, Any], file: Mapping[str, Any]) -> Translation:
    """Translate the flags of SNIP-it, see `Dialect.translate`."""
    ours = {name: value for name, value in flags.items() if name not in FLAGS}
    notes = []
    for name, (setting, remark) in SWITCHES.items():
        if flags.get(name):
            put(ours, name, setting, False)
            notes.append(f"deprecated: --{name}{remark}; write --no_{setting}")
    for name, setting in RENAMED.items():
        if name in flags:
            put(ours, name, setting, flags[name])
            notes.append(f"deprecated: --{name}; write --{setting}")
    if "model_path" in flags:
        notes += _model_path(ours, flags["model_path"])
    if "pruning_rate" in flags:
        notes += _pruning_rate(ours, file, flags["pruning_rate"])
    if "growing_rate" in flags:
        rate = SHARE.parse(flags["growing_rate"], "--growing_rate")
        if rate != 0:
            raise UsageError(f"--growing_rate {rate:g}: regrowth is not supported, only 0 is allowed")
    notes += [f"--{name} has no effect: {reason}" for name, reason in NEEDLESS.items() if name in flags]
    return Translation(ours, {}, "", notes)


def _pruning_rate(ours: Settings, file: Mapping[str, Any], value: Any) -> list[str]:
    """Use `--pruning_rate` as `--pruning_limit` of the criterion that reads it."""
    rate = SHARE.parse(value, "--pruning_rate")
    SHARE.check(rate, "--pruning_rate")
    known = dict(file) | ours
    if known.get("prune_criterion") == WITH_RATE and "pruning_limit" not in known:
        ours["pruning_limit"] = rate
        return [f"--pruning_rate {rate:g} is used as --pruning_limit {rate:g}"]
    return ["--pruning_rate has no effect: --pruning_limit is the sparsity"]


def _model_path(ours: Settings, value: str) -> list[str]:
    """Translate the path of a checkpoint in its run folder, or of the folder; "0" stands for none."""
    if value == "0":
        return ["--model_path 0 has no effect: the default is the newest checkpoint"]
    path = Path(value)
    if os.path.isfile(path):
        _check_checkpoint(path)
        put(ours, "model_path", "checkpoint_name", str(path.absolute().parent.parent))
        put(ours, "model_path", "checkpoint_model", path.stem)
        return [f"deprecated: --model_path; write --checkpoint_name {path.absolute().parent.parent} "
                f"--checkpoint_model {path.stem}"]  # fmt: skip
    if not os.path.isdir(path) and path.suffix in (SUFFIX, ".pth", ".pt"):
        raise UsageError(f"--model_path {value}: no such file")
    put(ours, "model_path", "checkpoint_name", value)
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
