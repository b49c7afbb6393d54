"""Type checks of plug-in options against the annotations of the constructor."""

import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from secateur.utils.errors import UsageError
from secateur.utils.suggest import one_line

#: annotation -> description of the allowed values, for error messages
TYPE_NAMES = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "None": "none",
}  # fmt: skip


def check_values(name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Raise UsageError for the first value that does not match its annotation, such as `float | None`.

    Only annotations of plain types are checked; all other parameters are left to the constructor. NaN is not a
    number.
    """
    for option, value in options.items():
        types = _types(parameters.get(option))
        if types and not any(_is(value, kind) for kind in types):
            wanted = " or ".join(TYPE_NAMES[kind] for kind in types)
            raise UsageError(f"{name}: {option} must be {wanted}, got {one_line(repr(value), 60)}")


def _types(parameter: inspect.Parameter | None) -> list[str]:
    """Return the plain types of an annotation; none if it has any other type."""
    if parameter is None:
        return []
    note = parameter.annotation
    text = note if isinstance(note, str) else getattr(note, "__name__", str(note))
    names = [part.strip() for part in text.split("|")]
    return names if all(name in TYPE_NAMES for name in names) else []


def _is(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    if kind in ("bool", "str"):
        return isinstance(value, bool if kind == "bool" else str)
    if isinstance(value, bool) or not isinstance(value, Integral if kind == "int" else Real):
        return False
    return bool(value == value)  # NaN is not
