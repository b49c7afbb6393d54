"""Read YAML and JSON from files and flags, with limits on time and memory.

Size, depth and number of values of a document are limited, with each alias expanded. A document that exceeds a
limit, is malformed or cannot be read raises a UsageError of one line that begins with the source.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.utils.errors import UsageError
from secateur.utils.files.regular_file import open_regular
from secateur.utils.suggest import one_line, one_line_errors

STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
#: code points that are not text; U+DC80 to U+DCFF represent bytes of file names that are not UTF-8
NO_TEXT = re.compile("[\x00\ud800-\udc7f\udd00-\udfff]")
#: largest number of characters of a quoted error
SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Limits:
    """Limits of a document: bytes, nested levels, and values with each alias expanded."""

    size: int
    depth: int = 50
    values: int = 10_000


#: limits of settings; PyYAML reads this size in a second or two
SETTINGS = Limits(size=256 * 2**10)
#: limits of results
RESULTS = Limits(size=64 * 2**20, values=5_000_000)


def read_yaml(file: Path, limits: Limits = SETTINGS) -> Any:
    """Read the document of a YAML file; raises UsageError."""
    return parse_yaml(read_text(file, limits), str(file), limits)


def read_json(file: Path, limits: Limits = SETTINGS) -> Any:
    """Read the document of a JSON file; raises UsageError."""
    return parse_json(read_text(file, limits), str(file), limits)


@one_line_errors()
def read_text(file: Path, limits: Limits = SETTINGS) -> str:
    """Read the text of a regular file, or of a descriptor that a shell has opened, such as /dev/fd/63.

    Raises UsageError for other kinds of files: opening a named pipe, for example, waits for a writer.
    """
    with open(file, "rb") if _is_open_already(file) else open_regular(file) as opened:
        data = opened.read(limits.size + 1)
    if len(data) > limits.size:
        raise UsageError(f"{file} has more than {limits.size:,} bytes, the most that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not text in UTF-8") from error


def parse_yaml(text: str, where: str, limits: Limits = SETTINGS) -> Any:
    """Parse a YAML text of null, booleans, numbers, strings, dates, lists and mappings.

    Values such as 1e-3 are numbers. Raises UsageError, with the line of a syntax error.
    """
    import yaml  # not needed for --help

    from secateur.utils.files.bounded_loader import BoundedLoader

    where = one_line(where)
    _check_size(text, where, limits)
    try:
        value = BoundedLoader(text, limits.values).get_single_data()
        _check_parts(value, limits)
        return value
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{where}: it is nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UsageError(f"{where}{line}: {one_line(reason)}") from error
    # PyYAML's constructors raise these for values that do not fit their tag: !!int '', !!timestamp abc
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = f" ({one_line(error, SHOWN_CHARACTERS)})" if isinstance(error, ValueError) else ""
        raise UsageError(f"{where}: a value does not fit its tag{reason}") from error


def parse_json(text: str, where: str, limits: Limits = SETTINGS) -> Any:
    """Parse a JSON text; raises UsageError."""
    where = one_line(where)
    _check_size(text, where, limits)
    if STRING.sub("", text).count(",") >= limits.values:  # before it takes memory
        raise UsageError(f"{where} has more than {limits.values:,} values")
    try:
        value = json.loads(text)
        _check_parts(value, limits)
        return value
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}, line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # such as a number of more digits than Python converts
        raise UsageError(f"{where}: {one_line(error, SHOWN_CHARACTERS)}") from error


def _is_open_already(file: Path) -> bool:
    """Return whether the path is an open descriptor of this process, standard input or the null device."""
    descriptors = ("/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd")
    return str(file.parent) in descriptors or str(file) in ("/dev/stdin", os.devnull)


def _check_size(text: str, where: str, limits: Limits) -> None:
    if len(text) > limits.size:
        raise UsageError(f"{where} is longer than {limits.size:,} characters, the most that is read")


def _check_parts(value: Any, limits: Limits, level: int = 0) -> None:
    """Raise UsageError for a value that is nested too deeply, or a string with a NUL or a lone surrogate."""
    if isinstance(value, str) and NO_TEXT.search(value):
        raise UsageError(f"{one_line(ascii(value), 40)} is not text (a NUL or a lone surrogate)")
    if isinstance(value, dict | list):
        if level == limits.depth:
            raise UsageError(f"it is nested more than {limits.depth} levels deep")
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_parts(part, limits, level + 1)
