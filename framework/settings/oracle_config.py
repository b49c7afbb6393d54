"""Settings of an oracle study, and the criterions that it compares, without importing torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.field import Flag, flags_of, section
from secateur.framework.settings.groups.what import REFERENCE
from secateur.framework.settings.run_config import FLAGS, RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

ALL_CRITERIONS = "all"
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


def check_study(config: StudyConfig) -> None:
    """Raise UsageError of one line for the first invalid setting of those that only a study has."""
    for name in OWN:
        STUDY_FLAGS[name].check(getattr(config, name))
    if config.set.get("criterion"):
        option = next(iter(config.set["criterion"]))
        raise UsageError(f"--set criterion.{option}: an oracle study uses every criterion with its defaults")
    chosen_criterions(config.criterions)


def chosen_criterions(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names to score, and the names that "all" excludes with the reason.

    `given` are names, or comma-separated names. Raises UsageError for an unknown name, with the nearest match, and
    for a named criterion that a study cannot compare.
    """
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("--criterions must be comma-separated names, or all")
    known = registry.names("criterions")
    named = dict.fromkeys(word for word in words if word != ALL_CRITERIONS)
    for name in named:
        if name not in known:
            raise UsageError(f"--criterions: {unknown('criterion', name, [*known, ALL_CRITERIONS])}")
        reason = _unfit(name)
        if reason is not None:
            raise UsageError(f"--criterions {name}: it {reason}")
    if ALL_CRITERIONS not in words:
        return list(named), {}
    reasons = {name: _unfit(name) or _unasked(name) for name in known}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None and name not in named}
    return [name for name in known if name not in left_out], left_out


def _unfit(name: str) -> str | None:
    """Return the reason why a study cannot compare the criterion; None if it can."""
    entry = registry.describe("criterions", name)
    if name == REFERENCE:
        return "is the reference of the comparison"
    if entry.when == "never":
        return "prunes nothing"
    if entry.granularity != "channel":
        return "ranks weights" if entry.granularity == "weight" else "ranks weights and channels together"
    return f"scores layers of the trainer {entry.trainer}" if entry.trainer else None


def _unasked(name: str) -> str | None:
    """Return the reason why "all" excludes the criterion; None if it does not."""
    exact = registry.derives("criterions", name, REFERENCE)
    return "computes exact changes for many sets of channels: give its name" if exact else None
