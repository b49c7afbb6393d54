"""Settings of an oracle study, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from secateur.framework.settings.field import Flag, flag, flags_of
from secateur.framework.settings.run_config import RunConfig

_study = partial(flag, group="Oracle study")


@dataclass
class StudyConfig(RunConfig):
    """Settings of one study, in addition to those of the evaluation of a checkpoint."""

    samples: int = _study(1024, help="number of training images, balanced over classes", low=1, most=10**7)
    criterions: tuple[str, ...] = _study(
        ("all",), help="criterions to compare, comma-separated; all: all that support the network",
        metavar="NAME,...|all",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Set `eval`, since a study reads a checkpoint and trains nothing."""
        self.eval = True

    def default_run_name(self) -> str:
        """Return the default run name."""
        return f"oracle_{self.model}"


#: settings of a run that apply to a study
SHARED = (
    "model", "arch", "hidden_dim", "checkpoint_name", "checkpoint_model", "loss", "batch_size", "seed", "protect",
    "data_set", "data_dir", "download", "image_size", "input_dim", "normalize", "num_classes", "val_share",
    "tuning", "preload_all_data", "workers", "results_dir", "run_name", "device", "threads", "deterministic",
    "memory_format", "progress", "plugins", "set",
)  # fmt: skip
OWN = ("samples", "criterions")
_ALL = flags_of(StudyConfig)
STUDY_FLAGS: dict[str, Flag] = {name: _ALL[name] for name in (*OWN, *SHARED)}
