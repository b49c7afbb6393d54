"""Accuracy of the dense network from a finished run with the same settings."""

from __future__ import annotations

import math

from secateur.framework.commands.dense_baseline import finished_dense_runs
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.run_folder import RunFolder
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import RESULTS, read_json
from secateur.utils.suggest import one_line


def known_dense_accuracy(config: RunConfig) -> float | None:
    """Return the accuracy in the report of the newest finished run of the dense network; None without one.

    Unreadable runs are skipped with one note in the config, so that damaged folders never stop a run.
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
            config.notes.append(f"dense accuracy from {folder.path}")
        break
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        config.notes.append(f"skipped in the search for a dense run: {one_line(unreadable[0])}{more}")
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
    if accuracy is None:
        return None
    is_number = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
    if not is_number or not 0 <= accuracy <= 1 or not math.isfinite(accuracy):
        shown = one_line(repr(accuracy), 60)
        raise UsageError(f"{folder.report}: the dense accuracy must be in [0, 1], got {shown}")
    return float(accuracy)
