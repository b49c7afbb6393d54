"""The interface of a dialect."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from secateur.framework.settings.field import Flag
from secateur.utils.errors import UsageError

Settings = dict[str, Any]
GROUP = "Flags of other programs"


class Translation(NamedTuple):
    """Result of a dialect.

    Attributes:
        flags: The given flags, with those of the other program replaced.
        defaults: Defaults of the other program, which apply to settings that the user did not give.
        why: The reason for the defaults.
        notes: A line for each replaced flag.
    """

    flags: Settings
    defaults: Settings
    why: str
    notes: list[str]


class Dialect(Protocol):
    """The flags of another program; `BARE`, if there is one, has values of flags of Secateur without one there."""

    FLAGS: Mapping[str, Flag]

    def translate(self, flags: Mapping[str, Any], file: Mapping[str, Any]) -> Translation:
        """Translate the flags of the other program.

        Args:
            flags: Values of the command line by flag, including keys of a file that are flags of the program.
            file: Values of the config file.

        Raises:
            UsageError: For invalid values, and for flags that contradict each other.
        """


def word(name: str, help: str = "", *, switch: bool = False, bare: str = "", **facts: Any) -> Flag:
    """Return a flag of another program; it is hidden in the help if it has no help.

    Args:
        name: The flag, without dashes.
        help: Its help.
        switch: Whether it is given without a value.
        bare: Its value if it is given without one.
        facts: Further attributes of `Flag`.
    """
    return Flag(name, bool if switch else str, None, GROUP, help, optional=True, bare=bare, **facts)


def put(flags: Settings, name: str, setting: str, value: Any) -> None:
    """Give a setting the value of the flag `name`; raise UsageError if it has another one."""
    if str(flags.setdefault(setting, value)) != str(value):
        raise UsageError(f"--{name} and --{setting} contradict each other")
