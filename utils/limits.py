"""Checks of numbers and switches; an error is one line with the name, the limits and the given value."""

from __future__ import annotations

import math
import operator
from typing import Any

from secateur.utils.errors import UsageError

#: limit of a number -> its sign, and the comparison that must hold
COMPARISONS = {
    "least": (">=", operator.ge),
    "above": (">", operator.gt),
    "most": ("<=", operator.le),
    "below": ("<", operator.lt),
}


def check_whole(name: str, value: Any, least: int, what: str = "whole number") -> None:
    """Raise UsageError unless `value` is an integer, not a boolean, and at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} must be a {what} >= {least}, got {value!r}")


def check_number(name: str, value: Any, **limits: float) -> None:
    """Raise UsageError unless `value` is a finite number, not a boolean, and within the limits.

    Args:
        name: Name of the value.
        value: The value.
        limits: Any of `least`, `above`, `most` and `below`.
    """
    bounds = [(*COMPARISONS[kind], limit) for kind, limit in limits.items()]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not all(holds(value, limit) for _, holds, limit in bounds):
        allowed = " and".join(f" {sign} {limit:g}" for sign, _, limit in bounds)
        raise UsageError(f"{name} must be a number{allowed}, got {value!r}")


def check_switch(name: str, value: Any) -> None:
    """Raise UsageError unless `value` is a boolean."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")
