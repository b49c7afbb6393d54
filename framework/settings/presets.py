"""Settings with a meaning beyond their own: modes that choose loss and criterion, and rates of the original."""

from __future__ import annotations

import json

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.run_config import KINDS, RunConfig
from secateur.utils.errors import UsageError

#: flags that choose a loss and more, at most one of them, and what they choose
MODES = {
    "l0": {"prune_criterion": "EmptyCrit", "loss": "L0CrossEntropy", "train_scheme": "L0Trainer"},
    "hoyer_square": {"loss": "HoyerSquare", "prune_criterion": "HoyerSquare"},
    "group_hoyer_square": {"loss": "GroupHoyerSquare", "prune_criterion": "GroupHoyerSquare"},
}


def check_modes(config: RunConfig) -> None:
    """UsageError for two modes at once, and for weights that should grow again."""
    chosen = [name for name in MODES if getattr(config, name, False)]
    if len(chosen) > 1:
        flags = " and ".join(f"--{name}" for name in chosen)
        raise UsageError(f"{flags} exclude each other: each chooses the loss")
    if config.growing_rate > 0:
        raise UsageError(f"--growing_rate {config.growing_rate:g}: weights never grow again, only 0 is allowed")


def use_modes(config: RunConfig) -> None:
    """Set what a mode chooses, whether or not autoconfig is on.

    A flag that says otherwise wins; so does a config file, unless the mode itself is a flag: that beats the
    file's values, and its modes too. What is derived from the mode's choice may stay.
    """
    if any(getattr(config, mode) and mode in config.from_flags for mode in MODES):
        for mode in MODES:
            if mode not in config.from_flags:
                setattr(config, mode, False)
    if config.eval:
        return
    who = "autoconfig" if config.autoconfig else "mode"
    for mode, values in MODES.items():
        kept = config.from_flags if mode in config.from_flags else config.given
        for name, value in values.items() if getattr(config, mode) else ():
            if name not in kept and not _is_kind_of(config, name, value):
                over = f", over the config file's {getattr(config, name)}" if name in config.given else ""
                setattr(config, name, value)
                config.given.add(name)
                config.notes.append(f"{who}: {name} = {json.dumps(value)} (--{mode}{over})")


def _is_kind_of(config: RunConfig, name: str, wanted: str) -> bool:
    """Whether the user's plug-in is the wanted one or derived from it, and not another mode's choice."""
    given = getattr(config, name)
    others = {values.get(name) for values in MODES.values()} - {wanted}
    return name in config.given and given not in others and registry.derives(KINDS[name], given, wanted)
