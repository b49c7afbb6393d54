"""docs/criterions.md has the table that `make docs` generates, which says what the classes say."""

from pathlib import Path

import pytest

from docs.criterions_table import BEGIN, COLUMNS, END, PAGE, main, updated
from secateur.framework.plugins.registry import registry

TABLE = PAGE.read_text(encoding="utf-8")


def rows(text: str) -> dict[str, dict[str, str]]:
    """The cells of each criterion, by the titles of their columns."""
    lines = text.split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line[1:-1].replace("\\|", "\0").split("|")] for line in lines]
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in cells}


def test_the_table_is_up_to_date() -> None:
    assert updated(TABLE) == TABLE, "docs/criterions.md is not what the classes say: run `make docs`"


def test_every_criterion_has_a_row_in_the_order_of_list() -> None:
    new = rows(updated(TABLE))
    assert list(new) == registry.names("criterions")
    assert all(row["score"] for row in new.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "SNIPitDuring": {"granularity": "weight", "when": "during, up to 7 steps", "data": "5 random batches"},
        "SynFlow": {"when": "before, 100 steps", "data": "none", "recommended": ""},
        "GRASP": {"when": "before", "data": "25 of each class"},
        "GateDecorators": {"when": "during, in steps of 5 %"},
        "GradPreserve": {"data": "2560 balanced samples"},
        "FPGM": {"scope": "layer", "when": "after", "paper": "[1811.00250](https://arxiv.org/abs/1811.00250)"},
        "StructuredRandom": {"granularity": "channel", "paper": ""},
        "EmptyCrit": {"when": "never", "recommended": "`--no_outer_layer_pruning`"},
        "BN": {"recommended": "`--T 5`, `--keep_share 0.05` (rounds)"},
    }.items(),
)
def test_a_row_says_what_the_class_says(name: str, expected: dict[str, str]) -> None:
    row = rows(TABLE)[name]
    assert {column: row[column] for column in expected} == expected


def test_settings_that_differ_between_schedules_are_shown_for_each(tmp_path: Path) -> None:
    folder = tmp_path / "criterions"
    folder.mkdir()
    (folder / "Own.py").write_text(
        "from secateur import During, WeightCriterion\n\n\nclass Own(WeightCriterion):\n"
        '    """|w| | 2."""\n\n'
        "    schedule = During(delay=1, freq=1, steps=1)\n"
        '    recommended = {"T": {"during": 2.0, "after": 2.0, "rounds": 3.5}}\n\n'
        "    def formula(self, weight, gradient, loss):\n        return weight.abs()\n"
    )
    registry.add_folder(tmp_path)
    row = rows(updated(TABLE))["Own"]
    assert row["recommended"] == "`--T 2` (during, after), `--T 3.5` (rounds)"
    assert row["score"] == "\0w\0 \0 2"
    assert row["when"] == "during"  # without a number, for a single step


def test_the_command_changes_nothing_but_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before, rest = TABLE.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n| an old table |\n{END}{rest.split(END)[1]}", encoding="utf-8")
    main(page)
    assert page.read_text(encoding="utf-8") == updated(TABLE)
