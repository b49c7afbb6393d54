"""Tables of `python main.py list`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from secateur.framework.plugins.registry import registry
from secateur.framework.plugins.source import Entry

ENTRY_COLUMNS = ("name", "summary", "granularity", "when", "paper")
PIPE_WIDTH = 240  # characters, so that a row is one line in a file or a pipe


def print_tables(kinds: Sequence[str]) -> None:
    """Print a table of the plug-ins of each kind, read from their source without importing them."""
    entries = {kind: [registry.describe(kind, name) for name in registry.names(kind)] for kind in kinds}
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    for number, (kind, plugins) in enumerate(entries.items()):
        console.print(*[""] * (number > 0), kind, sep="\n", style="bold")
        console.print(_table(kind, plugins))


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
