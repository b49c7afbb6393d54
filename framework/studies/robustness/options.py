"""Allowed values of the options of foolbox's attacks. Imports no torch: they are checked before loading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from secateur.utils.errors import UsageError

#: integer options, and their minimum
LEAST_VALUES = {"steps": 1, "binary_search_steps": 1, "repeats": 1, "candidates": 2}
#: options above 0, such as step sizes
POSITIVE = ("stepsize", "rel_stepsize", "abs_stepsize", "initial_const", "init_epsilon")
#: options of at least 0
FROM_ZERO = ("confidence", "overshoot")
BOOLEAN_OPTIONS = ("abort_early", "random_start", "across_channels", "check_trivial")
#: options that may be None: all candidates, no fixed step size
MAY_BE_NONE = ("candidates", "abs_stepsize", "channel_axis")


def check_attack_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an invalid value, such as zero steps; `make_attack` checks the names."""
    for name, value in options.items():
        wanted = _wrong(name, value)
        if wanted and not (value is None and name in MAY_BE_NONE):
            raise UsageError(f"attack_options: {name} is {wanted}, got {value!r}")


def _wrong(name: str, value: Any) -> str:
    """Return the allowed values of an option, or "" if the value is allowed."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in LEAST_VALUES:
        good = is_number and isinstance(value, int) and value >= LEAST_VALUES[name]
        return "" if good else f"a whole number from {LEAST_VALUES[name]} on"
    if name in POSITIVE:
        return "" if is_number and value > 0 else "a number above 0"
    if name in FROM_ZERO:
        return "" if is_number and value >= 0 else "a number from 0 on"
    if name == "gamma":
        return "" if is_number and 0 < value < 1 else "a number between 0 and 1"
    return "true or false" if name in BOOLEAN_OPTIONS and not isinstance(value, bool) else ""
