"""Settings from a YAML or JSON file and from `--set`, laid below the flags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from framework.config import GROUPS, RunConfig, parse_values
from framework.flags import flags_of
from utils.errors import UsageError
from utils.suggest import unknown

PATHS = ("plugins", "data_dir", "pretrained", "checkpoint_name", "compare_with", "pruning_config")
# YAML 1.1 wants a dot in a float, people write 1e-3
FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def merge(flags: Mapping[str, Any], file: Path | None = None, kind: type[RunConfig] = RunConfig) -> RunConfig:
    """The config, of class `kind`, of the flags over those of the file over the defaults.

    `flags` maps field names to what the command line holds (text, truth values, lists of text).
    Raises UsageError for anything that is no setting or of another type.
    """
    values = read_config_file(file, kind) if file is not None else {}
    above = parse_values({**flags, "set": parse_settings(flags.get("set", ()))}, flags=flags_of(kind))
    options = {group: dict(found) for group, found in values.get("set", {}).items()}
    for group, found in above.pop("set").items():
        options.setdefault(group, {}).update(found)
    given = {*values, *flags}
    if "attack" in flags and values.get("test_scheme") == RunConfig.test_scheme:
        given.discard("test_scheme")  # the file only repeats the default, which is no wish against the flag
    return kind(**{**values, **above, "set": options}, given=given, from_flags=set(flags))


def read_config_file(file: Path, kind: type[RunConfig] = RunConfig) -> dict[str, Any]:
    """The settings in a file; relative paths that exist beside the file are made absolute.

    A run name or checkpoint that only repeats the default is dropped, so that it follows `--model` and
    `--prune_criterion` when those are given beside the file; the key still counts as given.
    """
    raw = _load(file)
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UsageError(f"{file} must hold settings as 'key: value', found {type(raw).__name__}")
    values = parse_values(raw, str(file), flags_of(kind))
    for name in PATHS:
        if values.get(name):
            values[name] = _beside(file, values[name])
    plain = kind(**values)
    if plain.run_name == plain.default_run_name():
        values["run_name"] = None
    if plain.checkpoint_model == plain.default_checkpoint_model():
        values["checkpoint_model"] = None
    return values


def parse_settings(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Turn "criterion.key=value" texts into group to key to value; values are read as YAML."""
    found: dict[str, dict[str, Any]] = {}
    for text in settings:
        left, equals, value = text.partition("=")
        group, dot, key = left.strip().partition(".")
        if not (equals and dot and key):
            raise UsageError(f"--set wants GROUP.KEY=VALUE, got {text!r}")
        if group not in GROUPS:
            raise UsageError(unknown("group of --set", group, GROUPS))
        found.setdefault(group, {})[key] = parse_value(value, f"--set {left}")
    return found


def parse_value(text: str, where: str) -> Any:
    """A YAML value; numbers such as 1e-3 are numbers."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where}: {text!r} is not a YAML value ({_problem(error)})") from error
    return _floats(value)


def _load(file: Path) -> Any:
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"config file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"config file {file} is not text in UTF-8") from error
    try:
        return json.loads(text) if file.suffix == ".json" else _floats(yaml.safe_load(text))
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}, line {error.lineno}: {error.msg}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise UsageError(f"{file}{line}: {_problem(error)}") from error
    except ValueError as error:  # an impossible date, for one
        raise UsageError(f"{file}: {error}") from error


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error)


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floats(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_floats(part) for part in value]
    return float(value) if isinstance(value, str) and FLOAT.fullmatch(value) else value


def _beside(file: Path, value: Any) -> Any:
    """The path as seen from the file's folder if it exists there, else unchanged."""
    if isinstance(value, tuple):
        return tuple(_beside(file, part) for part in value)
    path = file.resolve().parent / value
    return str(path) if path.exists() else value
