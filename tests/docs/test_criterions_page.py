"""docs/criterions.md says of every criterion what its class says."""

from __future__ import annotations

import pytest

from secateur.framework.plugins.registry import registry
from secateur.framework.pruning.scoring.criterion import Criterion, Data
from secateur.framework.schedules.base import ITERATIVE, Schedule
from tests import ROOT

TABLE = ROOT / "docs" / "criterions.md"
COLUMNS = ["criterion", "score", "granularity", "scope", "when", "data", "paper"]
ROWS = [
    dict(zip(COLUMNS, [cell.strip() for cell in line.strip("|").split("|")], strict=True))
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
][1:]


def when(schedule: Schedule) -> str:
    """before, 7 steps."""
    kind, steps = type(schedule).__name__.lower(), getattr(schedule, "steps", 1)
    if getattr(schedule, "even", False):
        return f"{kind}, in steps of 5 %"
    if kind == "during":
        assert steps == ITERATIVE
        return f"during, up to {steps} steps"
    return kind if steps == 1 else f"{kind}, {steps} steps"


def data(wanted: Data) -> str:
    """5 random batches."""
    if wanted.kind == "none":
        return "none"
    if wanted.per_class is not None:
        return f"{wanted.per_class} of each class"
    kind = "random" if wanted.kind == "random" else "balanced"
    return f"{wanted.batches} {kind} batches" if wanted.batches is not None else f"{wanted.samples} {kind} samples"


def test_every_criterion_has_a_row_in_the_order_of_list() -> None:
    assert [row["criterion"] for row in ROWS] == registry.names("criterions")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["criterion"])
def test_the_row_says_what_the_class_says(row: dict[str, str]) -> None:
    cls: type[Criterion] = registry.get("criterions", row["criterion"])
    number = cls.paper.removeprefix("arXiv:")
    assert row["paper"] == (f"[{number}](https://arxiv.org/abs/{number})" if number else "")
    assert (row["granularity"], row["scope"]) == (cls.granularity, cls.scope)
    assert row["when"] == when(cls.schedule)
    assert row["data"] == data(cls.data)
    assert row["score"]
