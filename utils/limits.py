"""Checks of numbers and switches; an error is one line with the name, the limits and the given value."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from secateur.utils.errors import UsageError

#: raises UsageError for a name and a value that is not allowed
Limit = Callable[[str, Any], None]
#: limit of a number -> its sign, and the comparison that must hold
COMPARISONS = {
    "least": (">=", operator.ge),
    "above": (">", operator.gt),
    "most": ("<=", operator.le),
    "below": ("<", operator.lt),
}


def whole(least: int) -> Limit:
    """Return a check that a value is an integer, not a boolean, and at least `least`."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} must be a whole number >= {least}, got {value!r}")

    return check


def within(value: float, limits: Mapping[str, float]) -> bool:
    """Whether a number is within the limits, any of `least`, `above`, `most` and `below`."""
    return all(COMPARISONS[kind][1](value, limit) for kind, limit in limits.items())


def number(**limits: float) -> Limit:
    """Return a check that a value is a finite number, not a boolean, and within the limits.

    Args:
        limits: Any of `least`, `above`, `most` and `below`.
    """
    allowed = " and".join(f" {COMPARISONS[kind][0]} {limit:g}" for kind, limit in limits.items())

    def check(name: str, value: Any) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not within(value, limits):
            raise UsageError(f"{name} must be a number{allowed}, got {value!r}")

    return check


def check_switch(name: str, value: Any) -> None:
    """Raise UsageError unless `value` is a boolean."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")


def optional(limit: Limit) -> Limit:
    """Return a check that also allows None."""
    return lambda name, value: None if value is None else limit(name, value)


def check_all(values: Mapping[str, Any], limits: Mapping[str, Limit], prefix: str = "") -> None:
    """Check the values that have a limit; raises UsageError for the first that is not allowed."""
    for name, value in values.items():
        if name in limits:
            limits[name](f"{prefix}{name}", value)


def check_wholes(owner: object, **least: int) -> None:
    """Raise UsageError with the argument unless these attributes are whole numbers >= the given ones, or None."""
    _check_attributes(owner, {name: optional(whole(low)) for name, low in least.items()})


def check_shares(owner: object, *names: str) -> None:
    """Raise UsageError with the argument unless these attributes are shares in [0, 1)."""
    _check_attributes(owner, dict.fromkeys(names, number(least=0, below=1)))


def blocks_in(owner: str, depth: Any, layers: int, others: int) -> int:
    """Return n of a network with depth = layers * n + others; UsageError with the nearest depths if there is none.

    Args:
        owner: Name of the network for the message.
        depth: The depth to check: a whole number.
        layers: Layers of the depth that one block in each stage adds.
        others: Layers of the depth outside of the blocks.
    """
    is_whole = isinstance(depth, int) and not isinstance(depth, bool)
    count, rest = divmod(depth - others, layers) if is_whole else (0, 0)
    if is_whole and not rest and count >= 1:
        return count
    rule = f"{owner}: depth must be {layers}n + {others} with n >= 1, got {depth!r}"
    if is_whole:
        low = layers * max(count, 1) + others
        near = f"the nearest are {low} and {low + layers}" if count >= 1 else f"the smallest is {low}"
        rule += f": {near}"
    raise UsageError(rule, argument="depth")


def check_options_of(owner: str, limits: Mapping[str, Limit], **values: Any) -> None:
    """Raise UsageError with the argument, for the first option of a network that is not allowed."""
    for name, value in values.items():
        try:
            limits[name](name, value)
        except UsageError as error:
            raise UsageError(f"{owner}: {error}", argument=name) from None


def _check_attributes(owner: object, limits: Mapping[str, Limit]) -> None:
    check_options_of(type(owner).__name__, limits, **{name: getattr(owner, name) for name in limits})
