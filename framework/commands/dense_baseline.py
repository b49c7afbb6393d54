"""The dense network that a pruned one is compared with: its settings, its finished runs, and their accuracy."""

import os
from collections.abc import Iterator
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.files import load_config
from secateur.framework.settings.groups.what import NOTHING
from secateur.framework.settings.regulariser import NAMES as REGULARISER_NAMES
from secateur.framework.settings.regulariser import OWN as REGULARISER_SETTINGS
from secateur.framework.settings.run_config import FLAGS, PLUGIN_OF, PRESETS, RunConfig
from secateur.framework.storage.locate import run_folders
from secateur.framework.storage.run_folder import RunFolder
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import RESULTS, read_json
from secateur.utils.suggest import one_line


def dense_config(config: RunConfig) -> RunConfig:
    """Return the settings that train the dense network like `config`, without pruning.

    A trainer or loss that belongs to the pruning method, by a preset such as `--l0` or a requirement of the
    criterion, is replaced by the default, and there is no regulariser.
    """
    values = config.to_dict()
    values["set"] = {group: options for group, options in values["set"].items() if group != "criterion"}
    if config.owns_gates or registry.describe("criterions", config.prune_criterion).trainer:
        values["set"].pop("trainer", None)
        values["train_scheme"] = RunConfig.train_scheme
    values |= {"reg": None, "reg_table": RunConfig.reg_table} | dict.fromkeys(REGULARISER_SETTINGS)
    if config.loss in REGULARISER_NAMES:
        values["loss"] = RunConfig.loss
        values["set"].pop("loss", None)
    presets = [name for name in PRESETS if getattr(config, name)]
    if presets:
        values |= {**dict.fromkeys(presets, False), "loss": RunConfig.loss, "hoyer_reg": None}
        values["set"].pop("loss", None)
    return RunConfig.from_dict(values | {"prune_criterion": NOTHING})


def finished_dense_runs(config: RunConfig, unreadable: list[str]) -> Iterator[RunFolder]:
    """Yield the finished runs of the dense network of `config`, newest first.

    These are runs that prune nothing, with a report and equal values of all settings that may change the training
    of a dense network, see `Flag.dense`. The settings must be those that are saved. Runs from a checkpoint are
    skipped, because they may have started from a pruned network. Unreadable runs are skipped, and a line is
    appended to `unreadable`.
    """
    if config.checkpoint_name is not None or config.eval:
        return
    wanted = _dense_settings(dense_config(config))
    try:
        folders = run_folders(config.results_dir)
    except UsageError as error:
        unreadable.append(str(error))
        return
    for folder in reversed(folders):
        try:
            other = load_config(folder.config) if os.path.lexists(folder.report) else None
        except UsageError as error:
            unreadable.append(str(error))
            continue
        if other is None or other.prune_criterion != NOTHING:
            continue
        if not (other.checkpoint_name or other.eval or other.l0) and _dense_settings(other) == wanted:
            yield folder


def _dense_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that may change the training of a dense network."""
    flags = [flag for flag in FLAGS.values() if flag.dense and "model" not in flag.readers]
    values = {flag.name: getattr(config, flag.name) for flag in flags}
    # options by --set or by flags, and empty or missing groups, are equal
    options = {group: config.set.get(group, {}) for group in PLUGIN_OF if group not in ("criterion", "model")}
    model = config.asked_options("model")
    return {**values, "set": options | {"model": model}, "device": config.device.partition(":")[0]}


def known_dense_accuracy(config: RunConfig, decisions: Decisions) -> float | None:
    """Return the accuracy in the report of the newest finished run of the dense network; None without one.

    Unreadable runs are skipped with one note, so that damaged folders never stop a run.
    """
    unreadable: list[str] = []
    accuracy = None
    for folder in finished_dense_runs(config, unreadable):
        try:
            accuracy = read_dense_accuracy(folder)
        except UsageError as error:
            unreadable.append(str(error))
            continue
        if accuracy is not None:  # None if the run started from a pruned network
            decisions.notes.append(f"dense accuracy from {folder.path}")
        break
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        decisions.notes.append(f"skipped in the search for a dense run: {one_line(unreadable[0])}{more}")
    return accuracy


def read_dense_accuracy(folder: RunFolder) -> float | None:
    """Return the accuracy of the dense network in the report of a run; None if it was not tested.

    Raises UsageError, naming the file, if the report lacks it.
    """
    report = read_json(folder.report, RESULTS)
    dense = report.get("dense") if isinstance(report, dict) else None
    if not isinstance(dense, dict) or "accuracy" not in dense:
        raise UsageError(f"{folder.report} has no dense accuracy")
    accuracy = dense["accuracy"]
    is_number = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
    if accuracy is not None and not (is_number and 0 <= accuracy <= 1):
        shown = one_line(repr(accuracy), 60)
        raise UsageError(f"{folder.report}: the dense accuracy must be in [0, 1], got {shown}")
    return None if accuracy is None else float(accuracy)
