"""Flags of the command line: type, limits and help of a field of `RunConfig`."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.utils.errors import UsageError
from secateur.utils.limits import within
from secateur.utils.suggest import one_line, unknown

#: largest number of bytes of a text, and of each part of a path, as on Linux
LONGEST, LONGEST_NAME = 4096, 255
#: words for truth values
TRUTH_VALUES = dict.fromkeys(("true", "1", "yes"), True) | dict.fromkeys(("false", "0", "no", "none", ""), False)
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def is_true(value: str, flag: str) -> bool:
    """Convert a word such as "True" to a bool; raise UsageError for other words."""
    word = str(value).lower()
    if word not in TRUTH_VALUES:
        raise UsageError(f"--{flag} must be true or false, got {value!r}")
    return TRUTH_VALUES[word]


def section(title: str, **common: Any) -> Callable[..., Any]:
    """Return a function that makes the dataclass fields of a section of flags.

    Its arguments are the default, the help, and further attributes of `Flag`; `common` are those of all flags of
    the section.
    """

    def flag(default: Any, help: str, **facts: Any) -> Any:
        metadata = {"group": title, "help": help, **common, **facts}
        if isinstance(default, dict):
            return dataclasses.field(default_factory=dict, metadata=metadata)
        return dataclasses.field(default=default, metadata=metadata)

    return flag


@dataclass(frozen=True)
class Flag:
    """Everything that is known about a flag: its type and limits, who reads it, and when it has an effect.

    All tables of flags are derived from these facts, so that a new flag is one field.
    """

    name: str
    type: type
    default: Any
    group: str
    help: str
    optional: bool = False  # None is allowed
    many: bool = False  # a tuple: repeatable on the command line, or comma-separated numbers
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    #: largest allowed count; more would only exhaust memory or time
    most: int = 10**9
    #: "read" or "write" if the value is the path of a file or a folder
    path: str = ""
    metavar: str = ""
    #: value of the flag without one on the command line, if it may stand alone
    bare: str = ""
    #: kind of plug-in that the flag names, and the group of `--set` with its options
    plugin: str = ""
    options: str = ""
    #: readers of the value: "GROUP" or "GROUP.OPTION" of a plug-in, the word of a schedule, "pruning",
    #: "tracking", "loaders" or "loop" (of training)
    to: str = ""
    #: value that stands for None in the reader
    none: Any = None
    #: another flag and its values, of which one is needed for an effect
    needs: tuple[str, tuple[Any, ...]] | None = None
    #: property of an attack without which the flag has no effect
    attack: str = ""
    #: flags that must be given with this one: values of a preset by flag
    preset: Mapping[str, str] | None = None
    #: "training" or "pruning" if an evaluation ignores the flag
    phase: str = ""
    #: whether the flag may change the training of the dense network
    dense: bool = True
    #: "data" or "test" if it is taken from the run of a checkpoint, by all runs or by evaluations
    inherit: str = ""
    #: whether the command oracle has it
    study: bool = False
    #: whether it needs `--eval`
    tests: bool = False

    @property
    def readers(self) -> dict[str, str]:
        """The options that the flag sets, by group."""
        pairs = [reader.partition(".") for reader in self.to.split()]
        return {group: option or self.name for group, _, option in pairs}

    @property
    def only_reader(self) -> str:
        """The group of the option for which the flag is short; "" if it sets several options or none."""
        return next(iter(self.readers)) if len(self.readers) == 1 else ""

    def parse(self, value: Any, where: str = "") -> Any:
        """Convert a value from a file or the command line to the type of the field.

        Raises UsageError, beginning with `where` (default "--name"), if the value has a wrong type.
        """
        where = where or f"--{self.name}"
        if value is None and self.optional:
            return None
        if not self.many:
            return self._parse_one(value, where)
        if value is None:
            return ()
        if isinstance(value, str):
            value = _parts(value) if self.type in (int, float) else [value]
        if not isinstance(value, Sequence):
            value = [value]
        return tuple(self._parse_one(part, where) for part in value)

    def _parse_one(self, value: Any, where: str) -> Any:
        parsed: Any = None
        if self.type is bool:
            parsed = value if isinstance(value, bool) else None
        elif self.type is str:
            parsed = _text(value, self.choices)
            self._check_length(parsed or "", where)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            parsed = _number(value, self.type)
        if parsed is None:
            raise UsageError(f"{where} must be {self._words()}, got {_shown(value)}")
        return parsed

    def _check_length(self, text: str, where: str) -> None:
        """Raise UsageError for a text that is too long for file systems and logs."""
        longest = max(map(_bytes, text.split(os.sep))) if self.path else 0
        if _bytes(text) > LONGEST:
            raise UsageError(f"{where} may have at most {LONGEST} bytes, got {_bytes(text)}: {one_line(text, 40)}")
        if longest > LONGEST_NAME:
            raise UsageError(f"{where}: a file name may have at most {LONGEST_NAME} bytes, got {longest}: "
                             f"{one_line(text, 40)}")  # fmt: skip

    def _words(self) -> str:
        """Return a description of the allowed values."""
        if not self.many or self.type not in (int, float):
            return WORDS[self.type]
        several = "integers" if self.type is int else "numbers"
        return f"comma-separated {several}" + (f" ({self.metavar})" if self.metavar else "")

    def check(self, value: Any, where: str = "") -> None:
        """Check that the value is one of the choices and within the limits.

        Raises UsageError, beginning with `where` (default "--name"), otherwise.
        """
        where = where or f"--{self.name}"
        for part in value if self.many else (value,):
            if part is None:
                continue
            if self.choices and part not in self.choices:
                raise UsageError(unknown(where, str(part), self.choices))
            if self.type is int and self.high is None and part > self.most:
                raise UsageError(f"{where} must be at most {self.most}, got {one_line(part, 40)}")
            if self.type in (int, float) and not self._inside(part):
                raise UsageError(f"{where} must be {self.limits()}, got {one_line(part, 40)}")

    def _inside(self, number: float) -> bool:
        finite = isinstance(number, int) or math.isfinite(number)  # integers may be too large for a float
        bounds = {"least": self.low, "most": self.high, "above": self.above, "below": self.below}
        return finite and within(number, {kind: limit for kind, limit in bounds.items() if limit is not None})

    def limits(self) -> str:
        """Return the allowed range in words, for example "in [0, 1)" or "at least 1"."""
        if self.above is not None:
            return f"above {self.above:g}" if self.high is None else f"in ({self.above:g}, {self.high:g}]"
        if self.below is not None:
            return f"in [{self.low:g}, {self.below:g})"
        if self.high is not None:
            return f"in [{self.low:.10g}, {self.high:.10g}]"
        return "a finite number" if self.low is None else f"at least {self.low:g}"


def flags_of(cls: type) -> dict[str, Flag]:
    """Return the flags of a dataclass by name, in the order of its fields; fields without metadata are skipped."""
    hints = typing.get_type_hints(cls)
    flags = {}
    for field in dataclasses.fields(cls):
        if field.metadata:
            kind, optional, many = _unwrap(hints[field.name])
            default = {} if field.default is dataclasses.MISSING else field.default
            facts = dict(field.metadata)
            if isinstance(facts.get("needs"), str):  # a switch
                facts["needs"] = (facts["needs"], (True,))
            flags[field.name] = Flag(field.name, kind, default, optional=optional, many=many, **facts)
    return flags


def _unwrap(hint: Any) -> tuple[type, bool, bool]:
    """Return the plain type of a type hint, whether None is allowed, and whether it is a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return arguments[0], True, False
    if origin is tuple:
        return arguments[0], False, True
    return (origin or hint), False, False


def _parts(text: str) -> list[str]:
    """Return the parts of "1,2" or "[1, 2]" as text; none for "" and "default", which some scripts use."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return [] if inner == "default" else [part for part in inner.split(",") if part.strip()]


def _text(value: Any, choices: Sequence[str]) -> str | None:
    if isinstance(value, bool):  # YAML parses a bare on/off as a boolean
        word = "on" if value else "off"
        return word if word in choices else None
    if isinstance(value, str | int | float | datetime.date):
        return str(value)
    return None


def _number(value: str | int | float, kind: type) -> int | float | None:
    try:
        number: int | float = kind(value)
    except (ValueError, OverflowError):
        return None
    return number if isinstance(value, str) or number == value or number != number else None


def _shown(value: Any) -> str:
    return "a mapping" if isinstance(value, Mapping) else "null" if value is None else one_line(repr(value), 60)


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
