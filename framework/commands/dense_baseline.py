"""Settings of the dense network that a pruned one is compared with, and lookup of its finished runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.presets import MODES
from secateur.framework.settings.run_config import GROUPS, SHORT, RunConfig
from secateur.framework.storage.locate import _run_folders
from secateur.framework.storage.run_folder import RunFolder
from secateur.utils.errors import UsageError


def dense_config(config: RunConfig) -> RunConfig:
    """Return the settings that train the dense network like `config`, without pruning.

    A trainer or loss that belongs to the pruning method, by a mode such as `--l0` or a requirement of the
    criterion, is replaced by the default.
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


# Settings without influence on the trained dense network: pruning, names and paths, output, and the execution of
# the same arithmetic. All other settings, including new ones, must be equal.
NOT_DENSE = {
    "prune_criterion", "pruning_limit", "snip_steps", "schedule", "prune_delay", "prune_freq", "scope", "budget",
    "min_channels", "keep_share", "round_to", "attention", "inexact", "fold",
    "enable_rewinding", "rewind_to", "pruning_rate", "growing_rate", "hoyer_square", "group_hoyer_square",
    "outer_layer_pruning", "protect", "masking", "input_dim", "l0_reg", "beta_ema", "train_dense",
    "run_name", "results_dir", "checkpoint_model", "save_freq", "progress", "plugins", "autoconfig", "download",
    "memory_format",
    "train_memory_format", "fused", "threads", "preload_all_data", "workers", "plot_weights_freq",
    "n_rounds", "thresholds", "warmup_epochs", "lr_prune", "frequency", "prune_per_iteration",
    "maximum_pruning_iterations", "prune_neurons_max", "start_pruning_after_n_iterations", "pruning_momentum",
    "group_size", "l2_normalization_per_layer", "pruning_threshold", "fixed_criteria", "fixed_layer",
    "flops_regularization", "pruning_config", "preserve_moment", "track_importance", "track_batches", "alpha",
    "use_l2", "use_init", "grasp_T", "imp_samples", "track_stats",
    "skip_first_plot", "histograms", "saliency", "confusion", "plot_weights", "plot_net", "track_weights",
}  # fmt: skip


def finished_dense_run(config: RunConfig) -> Path | None:
    """Return the folder of the newest finished run of the dense network of `config`; None without one."""
    return next((folder.path for folder in finished_dense_runs(config, [])), None)


def finished_dense_runs(config: RunConfig, unreadable: list[str]) -> Iterator[RunFolder]:
    """Yield the finished runs of the dense network of `config`, newest first.

    These are runs with EmptyCrit, a report, and equal values of all settings except `NOT_DENSE`. The config must
    be in the state in which it is saved, with resolved values. Runs from a checkpoint are skipped, because they
    may have started from a pruned network. Unreadable runs are skipped, and a line is appended to `unreadable`.
    """
    if config.checkpoint_name is not None or config.eval:
        return
    wanted = _dense_settings(dense_config(config))
    try:
        folders = _run_folders(config.results_dir)
    except UsageError as error:
        unreadable.append(str(error))
        return
    for folder in reversed(folders):
        if not os.path.lexists(folder.report):
            continue
        try:
            other = folder.load_config()
        except UsageError as error:
            unreadable.append(str(error))
            continue
        if other.prune_criterion != "EmptyCrit" or other.checkpoint_name is not None:
            continue
        if not other.eval and not other.l0 and _dense_settings(other) == wanted:
            yield folder


def _dense_settings(config: RunConfig) -> dict[str, Any]:
    values = {name: value for name, value in config.to_dict().items() if name not in NOT_DENSE}
    # options by --set or by shorthand flags, and empty or missing groups, are equal
    options = {group: config.options(group) for group in GROUPS if group != "criterion"}
    return {**values, "set": options, **dict.fromkeys(SHORT), "device": config.device.partition(":")[0]}
