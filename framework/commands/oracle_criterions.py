"""Selection of the criterions of a study, without importing torch or plug-ins."""

from collections.abc import Sequence

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.groups.what import REFERENCE
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

ALL_CRITERIONS = "all"


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
