"""Values of a plug-in's options, checked against the types that its constructor names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from secateur.utils.errors import UsageError
from secateur.utils.suggest import one_line

#: type, as it is written -> what a value has to be, for messages
WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "None": "none",
}  # fmt: skip


def check_values(name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Raise UsageError for the first value that is none of the types named, such as `float | None`.

    Only plain types are looked at; a parameter with another annotation, or without one, is the constructor's own
    business. No number (NaN) is never one.
    """
    for option, value in options.items():
        types = _types(parameters.get(option))
        if types and not any(_is(value, one) for one in types):
            wanted = " or ".join(WORDS[one] for one in types)
            raise UsageError(f"{name}: {option} must be {wanted}, got {one_line(repr(value), 60)}")


def _types(parameter: inspect.Parameter | None) -> list[str]:
    """The plain types of an annotation; none where it has any other."""
    if parameter is None:
        return []
    note = parameter.annotation
    text = note if isinstance(note, str) else getattr(note, "__name__", str(note))
    found = [part.strip() for part in text.split("|")]
    return found if all(part in WORDS for part in found) else []


def _is(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    if kind in ("bool", "str"):
        return isinstance(value, bool if kind == "bool" else str)
    if isinstance(value, bool) or not isinstance(value, Integral if kind == "int" else Real):
        return False
    return bool(value == value)  # NaN is not
