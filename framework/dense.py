"""The dense network that a pruned one is compared with: which settings train it."""

from __future__ import annotations

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.presets import MODES
from secateur.framework.settings.run_config import RunConfig


def dense_config(config: RunConfig) -> RunConfig:
    """The settings that train the dense network as `config` trains its own, without any pruning.

    A trainer or loss that only came with a way to prune, by a mode such as `--l0` or because the criterion needs
    it, goes too.
    """
    values = config.to_dict()
    values["set"] = {group: options for group, options in values["set"].items() if group != "criterion"}
    if config.l0 or registry.describe("criterions", config.prune_criterion).trainer:
        values["set"].pop("trainer", None)
        values["train_scheme"] = "DefaultTrainer"
    modes = [name for name in MODES if getattr(config, name)]
    if modes:
        values |= {**dict.fromkeys(modes, False), "loss": "CrossEntropy", "hoyer_reg": None}
        values["set"].pop("loss", None)
    return RunConfig.from_dict(values | {"prune_criterion": "EmptyCrit"})
