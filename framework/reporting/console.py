"""Console output of a run: lines, tables and progress bars; the lines are also written to output/log.txt."""

import contextlib
import io
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

#: seconds between two lines of progress, where bars are requested but the output is not a terminal
LINE_EVERY = 10.0


class Console:
    """Prints to standard output and to a log file.

    Args:
        progress: "auto" shows progress bars on a terminal only. "on" also shows progress in a pipe or a file, as
            a plain line every `LINE_EVERY` seconds. Any other value disables progress.
    """

    def __init__(self, progress: str = "auto") -> None:
        self._terminal = sys.stdout.isatty()
        # Text is printed unchanged: no markup, and no `:name:` in a path replaced by an emoji.
        width = None if self._terminal else 120
        self._rich = RichConsole(highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)
        self._tracked = progress == "on" or (progress == "auto" and self._terminal)
        self._pending: list[str] = []
        self._log: Path | None = None
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        """Print and log one or several lines."""
        self._rich.print(text)
        self.note(text)

    def show(self, table: Table) -> None:
        """Print a table, and log it as plain text."""
        self._rich.print(table)
        plain = RichConsole(width=120, no_color=True, force_terminal=False, file=io.StringIO())
        with plain.capture() as captured:
            plain.print(table)
        self.note(*(line.rstrip() for line in captured.get().splitlines()))

    def note(self, *lines: str) -> None:
        """Write lines to the log only; buffered until `log_to` is called."""
        self._pending += lines
        if self._log is not None:
            # a path may contain bytes that are not valid UTF-8
            with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line}\n" for line in self._pending)
            self._pending.clear()

    def log_to(self, path: Path) -> None:
        """Write all earlier and later lines to this file."""
        self._log = path
        self.note()

    def track(self, items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
        """Iterate over `items` and show the progress, if it is enabled."""
        if not self._tracked or total < 2:
            return items
        return self._with_bar(items, title, total) if self._terminal else self._with_lines(items, title, total)

    def close(self) -> None:
        """Remove a progress bar that is still shown after an error, and restore the cursor."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _with_bar(self, items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        outermost = self._progress is None
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._rich,
                transient=True,
            )
            self._progress.start()
        bars = self._progress
        task = bars.add_task(title, total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            with contextlib.suppress(KeyError):  # closed already
                bars.remove_task(task)
            if outermost:
                self.close()

    def _with_lines(self, items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        last = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - last >= LINE_EVERY and done < total:
                self._rich.print(f"{title}: {done}/{total}")
                last = time.monotonic()
