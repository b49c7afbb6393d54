"""Settings from a YAML or JSON file and from `--set`, laid below the flags."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secateur.framework.settings.field import flags_of
from secateur.framework.settings.run_config import GROUPS, RunConfig, parse_values
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import parse_yaml, read_json, read_yaml
from secateur.utils.suggest import one_line, unknown

PATHS = ("plugins", "data_dir", "pretrained", "checkpoint_name", "compare_with", "pruning_config")


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
    raw = read_json(file) if file.suffix == ".json" else read_yaml(file)
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
            raise UsageError(f"--set wants GROUP.KEY=VALUE, got {one_line(repr(text), 60)}")
        if group not in GROUPS:
            raise UsageError(unknown("group of --set", group, GROUPS))
        found.setdefault(group, {})[key] = parse_value(value, f"--set {left}")
    return found


def parse_value(text: str, where: str) -> Any:
    """A YAML value; numbers such as 1e-3 are numbers."""
    return parse_yaml(text, f"{where}={one_line(text, 60)}")


def _beside(file: Path, value: Any) -> Any:
    """The path as seen from the file's folder if it exists there, else unchanged."""
    if isinstance(value, tuple):
        return tuple(_beside(file, part) for part in value)
    path = os.path.join(os.path.dirname(os.path.realpath(file)), value)
    return path if os.path.exists(path) else value
