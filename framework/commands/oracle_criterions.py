"""Which criterions a study compares, and why not the others. Imports no torch and no plug-in."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.framework.plugins.registry import registry
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

ALL = "all"
#: the criterion that the study measures itself
REFERENCE = "Oracle"


def chosen_criterions(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The names to score, and of "all" those left out, each with the reason.

    `given` are names, or several with commas. Raises UsageError for an unknown name, with the nearest match, and
    for a criterion asked for by its name that no study can take.
    """
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("--criterions: give names, with commas, or all")
    known = registry.names("criterions")
    named = dict.fromkeys(word for word in words if word != ALL)
    for name in named:
        if name not in known:
            raise UsageError(f"--criterions: {unknown('criterion', name, [*known, ALL])}")
        reason = _unfit(name)
        if reason is not None:
            raise UsageError(f"--criterions {name}: it {reason}")
    if ALL not in words:
        return list(named), {}
    reasons = {name: _unfit(name) or _unasked(name) for name in known}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None and name not in named}
    return [name for name in known if name not in left_out], left_out


def _unfit(name: str) -> str | None:
    """Why a study cannot take the criterion."""
    entry = registry.describe("criterions", name)
    if name == REFERENCE:
        return "is what the others are compared with"
    if entry.when == "never":
        return "prunes nothing"
    if entry.granularity != "channel":
        return "ranks single weights" if entry.granularity == "weight" else "ranks weights beside channels"
    return f"scores what the trainer {entry.trainer} makes" if entry.trainer else None


def _unasked(name: str) -> str | None:
    """Why it has to be asked for by its name."""
    exact = registry.derives("criterions", name, REFERENCE)
    return "computes exact changes itself, of many sets of channels: ask for it by its name" if exact else None
