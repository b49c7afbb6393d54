"""Modes: flags that choose the loss, the criterion and the trainer."""

from __future__ import annotations

import json

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.run_config import KINDS, RunConfig
from secateur.utils.errors import UsageError

#: mode -> settings that it chooses; at most one mode is allowed
MODES = {
    "l0": {"prune_criterion": "EmptyCrit", "loss": "L0CrossEntropy", "train_scheme": "L0Trainer"},
    "hoyer_square": {"loss": "HoyerSquare", "prune_criterion": "HoyerSquare"},
    "group_hoyer_square": {"loss": "GroupHoyerSquare", "prune_criterion": "GroupHoyerSquare"},
}


def check_modes(config: RunConfig) -> None:
    """Raise UsageError for more than one mode, and for regrowth of weights."""
    chosen = [name for name in MODES if getattr(config, name, False)]
    if len(chosen) > 1:
        flags = " and ".join(f"--{name}" for name in chosen)
        raise UsageError(f"{flags} exclude each other: each chooses the loss")
    if config.growing_rate > 0:
        raise UsageError(f"--growing_rate {config.growing_rate:g}: regrowth is not supported, only 0 is allowed")


def use_modes(config: RunConfig) -> None:
    """Apply the settings of a mode, independently of autoconfig.

    Flags take precedence over a mode; a config file does too, unless the mode is given as a flag, which overrides
    the values and modes of the file. Plug-ins derived from those of the mode are kept.
    """
    if any(getattr(config, mode) and mode in config.from_flags for mode in MODES):
        for mode in MODES:
            if mode not in config.from_flags:
                setattr(config, mode, False)
    if config.eval:
        return
    source = "autoconfig" if config.autoconfig else "mode"
    for mode, values in MODES.items():
        kept = config.from_flags if mode in config.from_flags else config.given
        for name, value in values.items() if getattr(config, mode) else ():
            if name not in kept and not _is_kind_of(config, name, value):
                over = f", overriding {getattr(config, name)} of the config file" if name in config.given else ""
                setattr(config, name, value)
                config.given.add(name)
                config.notes.append(f"{source}: {name} = {json.dumps(value)} (--{mode}{over})")


def _is_kind_of(config: RunConfig, name: str, wanted: str) -> bool:
    """Whether the given plug-in is the wanted one or derived from it, and not the choice of another mode."""
    given = getattr(config, name)
    others = {values.get(name) for values in MODES.values()} - {wanted}
    return name in config.given and given not in others and registry.derives(KINDS[name], given, wanted)
