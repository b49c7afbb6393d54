"""Type checks of plug-in options against the annotations of the constructor."""

import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from types import NoneType
from typing import Any

from secateur.utils.errors import UsageError
from secateur.utils.suggest import one_line

#: annotation -> description of the allowed values, for error messages, and their type
TYPES: dict[str, tuple[str, type]] = {
    "bool": ("true or false", bool),
    "int": ("a whole number", Integral),
    "float": ("a number", Real),
    "str": ("text", str),
    "None": ("none", NoneType),
}


def check_values(name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Raise UsageError for the first value that does not match its annotation, such as `float | None`.

    Only annotations of plain types are checked; all other parameters are left to the constructor. NaN is not a
    number.
    """
    for option, value in options.items():
        types = _types(parameters.get(option))
        if types and not any(_is(value, kind) for kind in types):
            wanted = " or ".join(TYPES[kind][0] for kind in types)
            raise UsageError(f"{name}: {option} must be {wanted}, got {one_line(repr(value), 60)}")


def _types(parameter: inspect.Parameter | None) -> list[str]:
    """Return the plain types of an annotation; none if it has any other type."""
    if parameter is None:
        return []
    note = parameter.annotation
    text = note if isinstance(note, str) else getattr(note, "__name__", str(note))
    names = [part.strip() for part in text.split("|")]
    return names if all(name in TYPES for name in names) else []


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, TYPES[kind][1]) and bool(value == value)  # NaN is not equal to itself
