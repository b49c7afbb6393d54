"""The settings of a study. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from secateur.framework.oracle.choice import chosen_criterions
from secateur.framework.prepare import prepare_run
from secateur.framework.settings.field import Flag, flag, flags_of
from secateur.framework.settings.run_config import RunConfig
from secateur.utils.errors import UsageError

_study = partial(flag, group="Oracle study")


@dataclass
class StudyConfig(RunConfig):
    """The settings of one study: those of a test of a checkpoint, and its own."""

    samples: int = _study(1024, help="training images, equally many of each class", low=1, most=10**7)
    criterions: tuple[str, ...] = _study(
        ("all",), help="criterions to compare, with commas, or all that can score the network",
        metavar="NAME,...|all",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """A study reads a checkpoint and trains nothing."""
        self.eval = True

    def default_run_name(self) -> str:
        """The run name when the user gave none."""
        return f"oracle_{self.model}"


#: the settings of a run that mean something for a study
SHARED = (
    "model", "arch", "hidden_dim", "checkpoint_name", "checkpoint_model", "loss", "batch_size", "seed", "protect",
    "data_set", "data_dir", "download", "image_size", "input_dim", "normalize", "num_classes", "val_share",
    "tuning", "preload_all_data", "workers", "results_dir", "run_name", "device", "threads", "deterministic",
    "memory_format", "progress", "plugins", "set",
)  # fmt: skip
OWN = ("samples", "criterions")
STUDY_FLAGS: dict[str, Flag] = {name: flags_of(StudyConfig)[name] for name in (*OWN, *SHARED)}


def prepare_study(flags: Mapping[str, Any], file: Path | None = None) -> StudyConfig:
    """The config of a study, checked and resolved as `prepare_run` does it.

    Raises UsageError for everything that can be known to be wrong before a network is loaded; writes nothing.
    """
    for name in flags:
        if name not in STUDY_FLAGS:
            raise UsageError(f"--{name} has no meaning for the command oracle, which trains and prunes nothing")
    config = prepare_run(flags, file, StudyConfig)
    assert isinstance(config, StudyConfig)
    for name in OWN:
        STUDY_FLAGS[name].check(getattr(config, name))
    if "criterion" in config.set:
        raise UsageError("--set criterion: a study takes every criterion with its own defaults")
    chosen_criterions(config.criterions)
    return config
