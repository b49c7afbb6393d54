"""Reading of settings from YAML and JSON files and from `--set`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secateur.framework.settings.dialects.discovery import OTHER_PROGRAMS
from secateur.framework.settings.run_config import FLAGS, RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import parse_yaml, read_json, read_yaml
from secateur.utils.suggest import one_line

PATHS = {name for name, flag in (FLAGS | OTHER_PROGRAMS).items() if flag.path == "read"}


def read_config_file(file: Path) -> dict[str, Any]:
    """Return the keys and values of a file; they are checked by `read_request`.

    Relative paths that exist in the folder of the file become absolute.
    """
    values = _read_mapping(file, read_json(file) if file.suffix == ".json" else read_yaml(file))
    return {name: _beside(file, value) if name in PATHS else value for name, value in values.items()}


def load_config(file: Path) -> RunConfig:
    """Return the settings of the config.yaml of another run, which is not trusted.

    Raises UsageError, beginning with the file, if it is unreadable, damaged or of another version.
    """
    values = read_yaml(file)
    if values is None:
        raise UsageError(f"{file} must contain settings as 'key: value', found NoneType")
    values = {name: value for name, value in _read_mapping(file, values).items() if name not in OTHER_PROGRAMS}
    config = RunConfig.from_dict(values, str(file))
    try:
        for name, flag in FLAGS.items():
            flag.check(getattr(config, name))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    return config


def _read_mapping(file: Path, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict | None):
        raise UsageError(f"{file} must contain settings as 'key: value', found {type(values).__name__}")
    return values or {}


def parse_settings(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Convert texts "criterion.key=value" to a mapping of group to key to value.

    Values are parsed as YAML; groups are checked by `parse_values`.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in settings:
        left, equals, value = text.partition("=")
        group, dot, key = left.strip().partition(".")
        if not (equals and dot and key):
            raise UsageError(f"--set must be GROUP.KEY=VALUE, got {one_line(repr(text), 60)}")
        options.setdefault(group, {})[key] = parse_yaml(value, f"--set {left}={one_line(value, 60)}")
    return options


def _beside(file: Path, value: Any) -> Any:
    """Return the path relative to the folder of the file if it exists there, or else unchanged."""
    if isinstance(value, list):
        return [_beside(file, part) for part in value]
    if not isinstance(value, str) or not value:
        return value
    path = os.path.join(os.path.dirname(os.path.realpath(file)), value)
    return path if os.path.exists(path) else value
