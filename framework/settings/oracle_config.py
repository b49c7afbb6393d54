"""The settings of a study. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from secateur.framework.settings.field import Flag, flag, flags_of
from secateur.framework.settings.run_config import RunConfig

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
_ALL = flags_of(StudyConfig)
STUDY_FLAGS: dict[str, Flag] = {name: _ALL[name] for name in (*OWN, *SHARED)}
