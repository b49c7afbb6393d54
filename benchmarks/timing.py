"""Timing in turns on a shared machine, and tables of ratios."""

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

#: processor time of other processes, as a share of one core, above which a measurement is repeated
BUSY = 0.15
#: total seconds that the measurements of one comparison wait for an idle machine
PATIENCE = 120.0


@dataclass
class Row:
    """One row of a result: a ratio (or another number), its spread and its upper target."""

    name: str
    value: float
    #: first and third quartile of the ratios over the turns
    low: float | None = None
    high: float | None = None
    target: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Return "met" or "missed", or nothing without a target."""
        return "" if self.target is None else "met" if self.value <= self.target else "missed"


@dataclass
class Turns:
    """Seconds of each contestant, one entry per turn; `disturbed` counts those with other processes active."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    disturbed: int = 0

    def median(self, name: str) -> float:
        """Return the median seconds of a contestant."""
        return statistics.median(self.seconds[name])

    def ratio(
        self, name: str, to: str, *, label: str = "", target: float | None = None, scale: float = 1.0
    ) -> Row:
        """Return the median and quartiles of the ratios `name` / `to` of each turn, times `scale`."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return spread(label or name, [scale * one / other for one, other in pairs], target)


def spread(name: str, values: Sequence[float], target: float | None = None) -> Row:
    """Return the median and the quartiles of values."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Row(name, middle, low, high, target)


def by_turns(
    contestants: Mapping[str, Callable[[], float | None]],
    repeats: int,
    warmup: int = 1,
    patience: float = PATIENCE,
) -> Turns:
    """Run every contestant once per turn, after `warmup` turns that are not recorded.

    A contestant returns its seconds, or None to be timed by the caller. While other processes use more than `BUSY`
    of a core, the measurement is repeated, for at most `patience` seconds in total.
    """
    turns = Turns({name: [] for name in contestants})
    for turn in range(-warmup, repeats):
        for name, run in contestants.items():
            seconds, busy = _timed(run)
            while busy and patience > 0 and turn >= 0:
                patience -= seconds
                seconds, busy = _timed(run)
            if turn >= 0:
                turns.seconds[name].append(seconds)
                turns.disturbed += busy
    return turns


def _timed(run: Callable[[], float | None]) -> tuple[float, bool]:
    others, start = _other_processes(), time.perf_counter()
    own = run()
    wall = time.perf_counter() - start
    busy = _other_processes() - others
    return wall if own is None else own, busy > max(0.03, BUSY * wall)  # resolution of 0.01 s


def _other_processes() -> float:
    """Return the processor seconds used by other processes so far; 0 if the system does not report them."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, line[1:9])
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(one.ru_utime + one.ru_stime for one in usage)
    return (user + nice + system + irq + soft + steal) / 100 - own


def machine() -> dict[str, Any]:
    """Return processor, threads and version of torch."""
    names = []
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def show(title: str, rows: Sequence[Row], columns: tuple[str, str] = ("ratio", "quartiles")) -> None:
    """Print rows as a plain table."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for column in (*columns, "target", ""):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        quartiles = "" if row.low is None or row.high is None else f"{row.low:.3f}-{row.high:.3f}"
        target = "" if row.target is None else f"<= {row.target:g}"
        table.add_row(row.name, f"{row.value:.3f}", quartiles, target, row.verdict, row.note)
    Console(width=120, highlight=False).print(table, "")


def head(disturbed: int | None = None) -> None:
    """Print the machine or, at the end, the number of disturbed measurements."""
    if disturbed is None:
        facts = machine()
        print(f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}\n")
    elif disturbed:
        print(f"{disturbed} measurements were taken while other processes were busy.")


def record(file: Path | None, results: Mapping[str, Sequence[Row]]) -> None:
    """Write the rows of each table and the machine as JSON, if a file is given."""
    if file is not None:
        tables = {name: [asdict(row) | {"verdict": row.verdict} for row in rows] for name, rows in results.items()}
        file.write_text(json.dumps({"machine": machine(), **tables}, indent=2) + "\n", encoding="utf-8")
