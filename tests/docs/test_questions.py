"""docs/architecture.md, docs/questions.md and CONTRIBUTING.md say what is there, and what they show runs."""

from __future__ import annotations

import re

import pytest

from tests import ROOT
from tests.docs.commands import blocks
from tests.test_architecture import RANKS

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
#: paths with a name to be filled in
PATTERNS = re.compile(r"NAME|PROGRAM|\*")


def test_the_picture_has_the_ranks_of_the_rooms() -> None:
    rows = re.findall(r"^ +(\d+)  (\[.*\])", blocks(ARCHITECTURE, "")[0], flags=re.MULTILINE)
    drawn = {int(rank): set(re.findall(r"\[ ([\w.]+) \]", rooms)) for rank, rooms in rows}
    assert len(rows) == len(RANKS)
    assert drawn == {rank: set(rooms) for rank, rooms in enumerate(RANKS)}


def test_the_paths_that_the_page_names_exist() -> None:
    paths = {path.rstrip(".") for path in re.findall(r"[\w*.]+/[\w*./]*", ARCHITECTURE)} | {"main.py"}
    assert len(paths) > 50
    for path in paths:
        place = ROOT / path
        assert (place.parent if PATTERNS.search(path) else place).exists(), path
    for link in re.findall(r"\]\((\S+?)\)", ARCHITECTURE):
        assert (ROOT / "docs" / link).is_file(), link


FLOW = [line for block in blocks(ARCHITECTURE, "")[1:] for line in block.splitlines()]


@pytest.mark.parametrize("line", FLOW, ids=lambda line: line.split("  framework")[0].strip())
def test_the_way_of_the_data_names_what_its_files_define(line: str) -> None:
    names, files = re.split(r" {2,}", line.strip())[:2]
    source = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files.split(" | "))
    for name in re.split(r", | \| ", names):
        assert re.search(rf"^(?:def|class) {name}\b", source, flags=re.MULTILINE), name
