"""The table of criterions in docs/criterions.md, generated from their classes: `make docs`."""

from pathlib import Path
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.schedules.base import Schedule

PAGE = Path(__file__).with_name("criterions.md")
#: lines around the table
BEGIN, END = "<!-- The table is generated from the classes by `make docs`. -->", "<!-- End of the table. -->"
COLUMNS = ("criterion", "score", "granularity", "scope", "when", "data", "recommended", "paper")


def updated(page: str) -> str:
    """Return the text of the page with a new table between its two markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return "\n".join([before + BEGIN, "", *_table(), "", END + after])


def _table() -> list[str]:
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(name) for name in registry.names("criterions"))]
    return [f"| {' | '.join(row)} |" for row in rows]


def _row(name: str) -> tuple[str, ...]:
    entry = registry.describe("criterions", name)
    criterion: Any = registry.get("criterions", name)
    number = entry.paper.removeprefix("arXiv:")
    paper = f"[{number}](https://arxiv.org/abs/{number})" if number else ""
    settings = ", ".join(_setting(flag, value) for flag, value in entry.recommended.items())
    return (
        name,
        entry.summary.rstrip(".").replace("|", "\\|"),
        entry.granularity,
        criterion.scope,
        _when(criterion.schedule),
        _data(criterion.data),
        settings,
        paper,
    )


def _when(schedule: Schedule) -> str:
    """Return the moment and the number of steps, such as "before, 7 steps"."""
    moment, steps = type(schedule).__name__.lower(), getattr(schedule, "steps", 1)
    if getattr(schedule, "even", False):
        return f"{moment}, in steps of 5 %"
    if steps == 1:
        return moment
    return f"{moment}, up to {steps} steps" if moment == "during" else f"{moment}, {steps} steps"


def _data(data: Any) -> str:
    """Return the kind and the amount, such as "5 random batches"."""
    if data.kind == "none":
        return "none"
    if data.per_class is not None:
        return f"{data.per_class} of each class"
    amount = f"{data.samples} {{}} samples" if data.batches is None else f"{data.batches} {{}} batches"
    return amount.format(data.kind)


def _setting(flag: str, value: Any) -> str:
    """Return a recommended setting as on the command line, with the schedules that it is for."""
    if isinstance(value, dict):
        flags = {schedule: _setting(flag, each) for schedule, each in value.items()}
        return ", ".join(
            f"{shown} ({', '.join(schedule for schedule, each in flags.items() if each == shown)})"
            for shown in dict.fromkeys(flags.values())
        )
    if isinstance(value, bool):
        return f"`--{flag}`" if value else f"`--no_{flag}`"
    return f"`--{flag} {value:g}`" if isinstance(value, float) else f"`--{flag} {value}`"


def main(page: Path = PAGE) -> None:
    """Rewrite the table in the page."""
    page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
