"""The record of who chose each setting of a run, and why."""

import dataclasses
import json
from typing import Any, NamedTuple, TypeVar

from secateur.framework.settings.run_config import FLAGS, RunConfig

Config = TypeVar("Config", bound=RunConfig)

# Sources of settings, by precedence. A preset on the command line takes precedence over a file, others do not.
COMMAND_LINE, FILE, DIALECT, CHECKPOINT, PRESET = "command line", "config file", "dialect", "checkpoint", "preset"
IMPLIED, RECOMMENDED, RULE, DEFAULT = "implied", "recommended", "rule", "default"
#: chosen by a measurement, or read from the data set or the machine
MEASURED = "measured"
USER = (COMMAND_LINE, FILE)
#: sources of settings that later choices may replace
OPEN = (RECOMMENDED, RULE, DEFAULT, MEASURED)


class Decision(NamedTuple):
    """The value of a setting, its source, and the reason."""

    setting: str
    value: Any
    source: str
    why: str = ""

    def __str__(self) -> str:
        reason = f" ({self.why})" if self.why else ""
        return f"{self.source}: {self.setting} = {json.dumps(self.value)}{reason}"


class Decisions:
    """The source of each setting of a run, and remarks on flags, for the log.

    Attributes:
        notes: Lines for the log: a line for each decision of neither the user nor a default, and remarks.
        flags: Names of the settings that the command line gave.
    """

    def __init__(self) -> None:
        self._made: dict[str, Decision] = {}
        self.notes: list[str] = []
        self.flags: set[str] = set()

    @property
    def remarks(self) -> list[str]:
        """The notes without those of decisions."""
        lines = {str(decision) for decision in self._made.values()}
        return [note for note in self.notes if note not in lines]

    @property
    def given(self) -> set[str]:
        """Names of the settings that were asked for, by the user or by what the user gave."""
        return {name for name, decision in self._made.items() if decision.source not in OPEN}

    def source(self, name: str) -> str:
        """Return the source of a setting."""
        return self._made[name].source if name in self._made else DEFAULT

    def record(self, decision: Decision) -> None:
        """Record a decision, with a line for the log unless it is the user's or gives the default."""
        self._made[decision.setting] = decision
        if decision.source not in (*USER, DEFAULT) and decision.value != FLAGS[decision.setting].default:
            self.notes.append(str(decision))

    def choose(self, config: Config, source: str, why: str, **values: Any) -> Config:
        """Return settings with these values, and record those that differ.

        Values of the user, such as relative paths that become absolute, are replaced without a record.
        """
        for name, value in values.items():
            if value != getattr(config, name) and self.source(name) not in USER:
                self.record(Decision(name, value, source, why))
        return dataclasses.replace(config, **values)

    def table(self, config: RunConfig) -> list[Decision]:
        """Return the decision on every setting, in the order of the settings."""
        unmade = Decision("", None, DEFAULT, "of the command line")
        values = config.to_dict().items()
        return [self._made.get(name, unmade)._replace(setting=name, value=value) for name, value in values]
