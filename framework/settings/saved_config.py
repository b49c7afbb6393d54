"""Reading of the config.yaml of another run, which is not trusted."""

from __future__ import annotations

from pathlib import Path

from secateur.framework.settings.run_config import FLAGS, KINDS, RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import read_yaml


def load_config(file: Path) -> RunConfig:
    """Return the settings of a config.yaml, with checked types and limits.

    Raises UsageError, beginning with the file, if it is unreadable, damaged or of another version.
    """
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise UsageError(f"{file} must contain settings as 'key: value', found {type(values).__name__}")
    config = RunConfig.from_dict(values, str(file))
    for name, flag in FLAGS.items():
        if name in KINDS or name == "set":
            continue
        try:
            flag.check(getattr(config, name))
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from error
    return config
