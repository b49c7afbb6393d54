"""Commands that print a table and end: the plug-ins (`list`), and the settings of a run (`--explain`)."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.framework.plugins.registry import registry
from secateur.framework.plugins.source import Entry
from secateur.framework.settings.decisions import DEFAULT, USER, Decision, Decisions
from secateur.framework.settings.oracle_config import StudyConfig
from secateur.framework.settings.run_config import RunConfig

ENTRY_COLUMNS = ("name", "summary", "granularity", "when", "paper")
PIPE_WIDTH = 240  # characters, so that a row is one line in a file or a pipe


def print_tables(kinds: Sequence[str]) -> None:
    """Print a table of the plug-ins of each kind, read from their source without importing them."""
    entries = {kind: [registry.describe(kind, name) for name in registry.names(kind)] for kind in kinds}
    console = _console()
    for number, (kind, plugins) in enumerate(entries.items()):
        console.print(*[""] * (number > 0), kind, sep="\n", style="bold")
        console.print(_table(kind, plugins))


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _table(kind: str, entries: Sequence[Entry]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    shown = [
        column for column in ENTRY_COLUMNS if kind == "criterions" or any(getattr(e, column) for e in entries)
    ]
    for column in shown or ENTRY_COLUMNS[:1]:
        table.add_column(column, no_wrap=column != "summary", overflow="fold")
    for entry in entries:
        table.add_row(*(getattr(entry, column) for column in shown))
    return table


def explained_run(config: RunConfig, decisions: Decisions) -> tuple[RunConfig, Decisions]:
    """Return the settings of a run that passes its checks, with all choices but measurements of speed.

    Values that stay "auto" are measured when the run starts. Choices and checks that need the images are left out
    if the run would download them.

    Raises UsageError for what the run refuses before it starts.
    """
    from secateur.framework.commands import evaluate, oracle, train
    from secateur.framework.commands.assemble import is_missing
    from secateur.framework.commands.machine import prepare_machine

    config = prepare_machine(config, decisions)
    command: Any = oracle if isinstance(config, StudyConfig) else evaluate if config.eval else train
    if is_missing(config):
        decisions.notes.append(f"{config.data_set} is not here: what depends on its images is not checked")
        return command.plan(config, decisions)[0], decisions
    return command.ready(config, decisions).config, decisions


def print_decisions(config: RunConfig, decisions: Decisions) -> None:
    """Print the decision on every setting as a table, the user's first and the defaults last, and the remarks."""
    rows = decisions.table(config)
    table = Table(title="settings", title_justify="left")
    for title in ("setting", "value", "chosen by", "why"):
        table.add_column(title, overflow="fold")
    for row in sorted(rows, key=_order):
        table.add_row(row.setting, json.dumps(row.value), row.source, row.why)
    console = _console()
    console.print(table)
    for note in decisions.remarks:
        console.print(note)


def _order(row: Decision) -> int:
    return 0 if row.source in USER else 2 if row.source == DEFAULT else 1
