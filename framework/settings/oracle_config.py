"""Settings of an oracle study, without importing torch."""

from dataclasses import dataclass

from secateur.framework.settings.field import Flag, flags_of, section
from secateur.framework.settings.run_config import FLAGS, RunConfig

_study = section("Oracle study")


@dataclass(frozen=True)
class StudyConfig(RunConfig):
    """Settings of one study, in addition to those of the evaluation of a checkpoint."""

    samples: int = _study(1024, "number of training images, balanced over classes", low=1, most=10**7)
    criterions: tuple[str, ...] = _study(
        ("all",),
        "criterions to compare, comma-separated; all: all that support the network",
        metavar="NAME,...|all",
    )

    eval: bool = _study(True, "a study reads a checkpoint and trains nothing")

    def __post_init__(self) -> None:
        object.__setattr__(self, "eval", True)  # whatever a config file says

    def default_run_name(self) -> str:
        """Return the default run name."""
        return f"oracle_{self.model}"


_ALL = flags_of(StudyConfig)
OWN = [name for name in _ALL if name not in FLAGS]
STUDY_FLAGS: dict[str, Flag] = {name: _ALL[name] for name in (*OWN, *FLAGS) if name in OWN or FLAGS[name].study}
