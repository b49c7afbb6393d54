"""Settings from a YAML or JSON file and from `--set`, which flags override."""

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
    """Return a config of class `kind`: flags override the file, which overrides the defaults.

    `flags` maps field names to values of the command line (text, booleans, lists of text).
    Raises UsageError for unknown settings and values of a wrong type.
    """
    values = read_config_file(file, kind) if file is not None else {}
    above = parse_values({**flags, "set": parse_settings(flags.get("set", ()))}, flags=flags_of(kind))
    options = {group: dict(settings) for group, settings in values.get("set", {}).items()}
    for group, settings in above.pop("set").items():
        options.setdefault(group, {}).update(settings)
    given = {*values, *flags}
    if "attack" in flags and values.get("test_scheme") == RunConfig.test_scheme:
        given.discard("test_scheme")  # the file only repeats the default, which does not contradict the flag
    return kind(**{**values, **above, "set": options}, given=given, from_flags=set(flags))


def read_config_file(file: Path, kind: type[RunConfig] = RunConfig) -> dict[str, Any]:
    """Return the settings of a file; relative paths that exist in the folder of the file become absolute.

    A run name or checkpoint that equals its default is dropped, so that it follows `--model` and
    `--prune_criterion` if they are given on the command line; the key still counts as given.
    """
    raw = read_json(file) if file.suffix == ".json" else read_yaml(file)
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UsageError(f"{file} must contain settings as 'key: value', found {type(raw).__name__}")
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
    """Convert texts "criterion.key=value" to a mapping of group to key to value; values are parsed as YAML."""
    options: dict[str, dict[str, Any]] = {}
    for text in settings:
        left, equals, value = text.partition("=")
        group, dot, key = left.strip().partition(".")
        if not (equals and dot and key):
            raise UsageError(f"--set must be GROUP.KEY=VALUE, got {one_line(repr(text), 60)}")
        if group not in GROUPS:
            raise UsageError(unknown("group of --set", group, GROUPS))
        options.setdefault(group, {})[key] = parse_value(value, f"--set {left}")
    return options


def parse_value(text: str, where: str) -> Any:
    """Parse a YAML value; texts such as 1e-3 are numbers."""
    return parse_yaml(text, f"{where}={one_line(text, 60)}")


def _beside(file: Path, value: Any) -> Any:
    """Return the path relative to the folder of the file if it exists there, or else unchanged."""
    if isinstance(value, tuple):
        return tuple(_beside(file, part) for part in value)
    path = os.path.join(os.path.dirname(os.path.realpath(file)), value)
    return path if os.path.exists(path) else value
