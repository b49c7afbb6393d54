"""Files are written whole or not at all."""

import json
import math
from pathlib import Path

import pytest

from secateur.utils.files import atomic


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    atomic.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        atomic.write_json(path, {"a": object()})
    with pytest.raises(RuntimeError), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_lacks_becomes_null(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", {"loss": math.nan, "list": [math.inf, 1.5], "none": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": None, "list": [None, 1.5], "none": None}
