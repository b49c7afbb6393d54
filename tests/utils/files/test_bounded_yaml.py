"""YAML and JSON from anywhere: read within limits, and one line for everything else."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import (
    SETTINGS,
    Limits,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
)

CHAIN = list(zip("abcdefgh", "bcdefghi", strict=True))
HOSTILE = {
    "a circle": "a: &a [*a]",
    "a circle through a merge": "&a {<<: *a}",
    "a circle in a mapping": "a: &a {b: {c: *a}}",
    "a bomb of lists": "a: &a [x, x, x]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in CHAIN),
    "a bomb of merges": "- &a {x: 1}\n"
    + "".join(f"- &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in CHAIN),
    "brackets": "[" * 2000,
    "closed brackets": "[" * 2000 + "]" * 2000,
    "braces": "{a: " * 2000,
    "dashes": "- " * 2000,
    "many values": "[" + "1," * 10_001 + "]",
    "many characters": "#" * (SETTINGS.size + 1),
    "a number to base 60": "1" + ":1" * 50_000,
    "many digits": "9" * 5000,
    "no time": "!!timestamp abc",
    "an impossible date": "2020-99-99",
    "an impossible offset": "2001-12-14t21:59:43.10-99:99",
    "no integer": "!!int ''",
    "no number": "!!float ''",
    "no truth value": "!!bool perhaps",
    "bytes": "!!binary aGVsbG8=",
    "a set": "!!set {a}",
    "pairs": "!!pairs [a: 1]",
    "Python": "!!python/object/apply:os.system [true]",
    "a tag of another kind": "!!map [a]",
    "NUL": "a: \0",
    "an escaped NUL": '"\\0"',
    "half a surrogate pair": '"\\ud800"',
    "no code point": '"\\U99999999"',
    "an unknown alias": "*a",
    "a key that is a list": "? [a]\n: b",
    "a tab": "\t- a",
    "an open bracket": "[1, 2",
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_one_line_at_once(case: str) -> None:
    start = time.process_time()
    with pytest.raises(UsageError, match=r"^--set model\.x") as caught:
        parse_yaml(HOSTILE[case], "--set model.x")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "text",
    ["[" * 2000, "[" * 200_000, '{"a":' * 2000, "[" + "1," * 10_001 + "1]", "9" * 5000, '"\\ud800"', '"\\u0000"',
     "", "nul", '{"a": 1', "\0", " " * (SETTINGS.size + 1)],
)  # fmt: skip
def test_hostile_json_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="^rules.json") as caught:
        parse_json(text, "rules.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_brackets_in_a_text_do_not_nest() -> None:
    text = json.dumps({"a": "[" * 2000, 'b"': '\\"[['})
    assert parse_json(text, "x") == json.loads(text)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_what_settings_hold_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value), "x") == value
    read = parse_yaml(yaml.safe_dump(value, allow_unicode=True), "x")
    assert read == value or "e" in str(value).lower()  # a text such as 1e5 is read as a number


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("[]{}:,-&*ab!?|>'\"%@`#<=~.0159e \n\t\\x\0\ud800"), max_size=40))
def test_no_text_raises_anything_but_one_line(text: str) -> None:
    for parse in (parse_yaml, parse_json):
        try:
            parse(text, "x")
        except UsageError as error:
            assert "\n" not in str(error)


def test_anchors_that_end_are_written_out() -> None:
    assert parse_yaml("a: &a {p: 1}\nb: *a\nc: {<<: *a, q: 2}", "x") == {
        "a": {"p": 1}, "b": {"p": 1}, "c": {"p": 1, "q": 2},
    }  # fmt: skip


def test_file_names_that_are_not_utf_8_survive() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert parse_yaml(yaml.safe_dump({"a": name}, allow_unicode=True), "x") == {"a": name}


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "below a file", "long", "latin 1", "large", "link"])
@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str, read: Any) -> None:
    file = tmp_path / "file"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "latin 1":
        file.write_bytes(b"a: \xe9")
    elif kind == "large":
        file.write_bytes(b"#" * (SETTINGS.size + 1))
    elif kind == "link":
        file.symlink_to(file)
    elif kind == "below a file":
        file.write_text("")
        file = file / "file"
    elif kind == "long":
        file = tmp_path / ("x" * 5000)
    with pytest.raises(UsageError, match="file|xxx") as caught:
        read(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_what_a_shell_hands_over_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"epochs: 3")
    os.close(writing)
    try:
        assert read_yaml(Path(f"/dev/fd/{reading}")) == {"epochs": 3}
    finally:
        os.close(reading)
    assert read_text(Path(os.devnull)) == ""


def test_limits_are_inclusive() -> None:
    limits = Limits(size=100, depth=2, values=4)
    assert parse_yaml("[[1, 2]]", "x", limits) == [[1, 2]] == parse_json("[[1, 2]]", "x", limits)
    for text in ("[[[1]]]", "[[1, 2, 3, 4, 5]]", "#" * 101):
        with pytest.raises(UsageError):
            parse_yaml(text, "x", limits)
    for text in ("[[[1]]]", "[[1, 2, 3, 4, 5]]", " " * 101):
        with pytest.raises(UsageError):
            parse_json(text, "x", limits)


def test_a_file_of_just_the_limit_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    file, limits = tmp_path / "a.yaml", Limits(size=64)
    file.write_text("é" + "x" * 62, encoding="utf-8")
    assert len(str(read_yaml(file, limits))) == 63
    file.write_text("é" + "x" * 63, encoding="utf-8")  # 64 characters, 65 bytes
    with pytest.raises(UsageError, match="more than 64 bytes"):
        read_yaml(file, limits)
