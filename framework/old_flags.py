"""Flags of SNIP-it that are spelled differently here: each is accepted, and one line says what to write instead.

Several of them did the opposite of what their name says; here they do what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from utils.errors import UsageError


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
#: flags with a value by their old names
VALUES = {"output_dim": "num_classes"}
#: flags that nothing needs any more, and why
NEEDLESS = {"N": "the number of training samples is the data set's"}


def translated(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The flags by today's names, and a line for each old one.

    Raises UsageError where an old flag and today's contradict each other.
    """
    found = {name: value for name, value in flags.items() if name not in {*SWITCHES, *VALUES, *NEEDLESS}}
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
    lines += [f"--{name} has no effect: {why}" for name, why in NEEDLESS.items() if name in flags]
    return found, lines


def _put(found: dict[str, Any], name: str, setting: str, value: Any) -> None:
    if found.setdefault(setting, value) != value:
        raise UsageError(f"--{name} and --{setting} say different things")
