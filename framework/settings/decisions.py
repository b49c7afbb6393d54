"""Settings from several sources, merged by one precedence, with the record of who chose each and why."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from secateur.framework.settings.run_config import FLAGS, RunConfig

Config = TypeVar("Config", bound=RunConfig)
#: values of settings, each with the reason
Reasoned = dict[str, tuple[Any, str]]

# Sources of settings, by precedence. A preset on the command line takes precedence over a file, others do not.
COMMAND_LINE, FILE, DIALECT, CHECKPOINT, PRESET = "command line", "config file", "dialect", "checkpoint", "preset"
IMPLIED, RECOMMENDED, RULE, DEFAULT = "implied", "recommended", "rule", "default"
#: chosen by a measurement of time; or what the data set, the network or the machine is
MEASURED, FOUND = "measured", "found"
USER = (COMMAND_LINE, FILE)
#: sources of settings that later choices may replace
OPEN = (RECOMMENDED, RULE, DEFAULT, MEASURED, FOUND)


class Decision(NamedTuple):
    """The value of a setting, its source, and the reason."""

    setting: str
    value: Any
    source: str
    why: str = ""

    def __str__(self) -> str:
        reason = f" ({self.why})" if self.why else ""
        return f"{self.source}: {self.setting} = {json.dumps(self.value)}{reason}"


def because(values: Mapping[str, Any], why: str = "") -> Reasoned:
    """Return the values, all for the same reason."""
    return {name: (value, why) for name, value in values.items()}


class Decisions:
    """The source of each setting of a run, and remarks on flags, for the log.

    Args:
        kind: The class of the settings.
        written: What the user wrote for settings: flags of other programs with the same values.

    Attributes:
        notes: Lines for the log: a line for each decision of neither the user nor a default, and remarks.
        flags: Names of the settings that the command line gave.
    """

    def __init__(self, kind: type[RunConfig] = RunConfig, written: Mapping[str, str] | None = None) -> None:
        self._kind = kind
        self.written = written or {}
        self._made: dict[str, Decision] = {}
        self._options: dict[str, Decision] = {}  # on single options of plug-ins, which layers share
        self._asked: set[str] = set()
        self.notes: list[str] = []
        self.flags: set[str] = set()

    @property
    def remarks(self) -> list[str]:
        """The notes without those of decisions."""
        lines = {str(decision) for decision in (self._made | self._options).values()}
        return [note for note in self.notes if note not in lines]

    @property
    def given(self) -> set[str]:
        """Names of the settings that were asked for, by the user or by what the user gave."""
        return self._asked | {name for name, decision in self._made.items() if decision.source not in OPEN}

    def source(self, name: str) -> str:
        """Return the source of a setting."""
        return self.on(name).source

    def on(self, name: str) -> Decision:
        """Return the decision on a setting, or on an option of a plug-in, "set.GROUP.KEY"."""
        unmade = Decision(name, None, DEFAULT, "of the flag")
        return (self._made | self._options).get(name, unmade)

    @property
    def config(self) -> RunConfig:
        """The settings of the layers so far, over the defaults."""
        return self._kind(**{name: decision.value for name, decision in self._made.items()})

    def add(self, source: str, layer: Reasoned) -> None:
        """Add a layer below those so far: it decides the settings that they lack, and options of plug-ins."""
        for name, (value, why) in layer.items():
            above = self._made.setdefault(name, Decision(name, value, source, why))
            if name == "set":
                options = {
                    group: value.get(group, {}) | above.value.get(group, {}) for group in value | above.value
                }
                self._made[name] = above._replace(value=options)
                for option, part in _options(value).items():
                    self._options.setdefault(option, Decision(option, part, source, why))

    def note_all(self) -> None:
        """Add the line of every decision to the notes, after the last layer."""
        for decision in (self._made | self._options).values():
            self._note(decision)

    def _note(self, decision: Decision) -> None:
        """Add a line for the log, unless the decision is the user's or gives the default."""
        if decision.source in (*USER, DEFAULT) or decision.setting == "set":  # the lines of its options suffice
            return
        if decision.setting in self._options or decision.value != FLAGS[decision.setting].default:
            self.notes.append(str(decision))

    def choose(self, config: Config, source: str, why: str, **values: Any) -> Config:
        """Return settings with these values, and record those that differ."""
        for name, value in values.items():
            if value == getattr(config, name):
                continue
            if self.source(name) in USER:
                self._asked.add(name)
            if name in self._made:
                self.notes = [note for note in self.notes if note != str(self._made[name])]
            self._made[name] = Decision(name, value, source, why)
            self._note(self._made[name])
        return dataclasses.replace(config, **values)

    def complete(self, config: Config, why: str, **values: Any) -> Config:
        """Return settings with these values, and record those of settings that had none.

        The others are names and paths that were given, in their full form: they remain the choice of their source.
        """
        given = {name: value for name, value in values.items() if getattr(config, name) is not None}
        return self.choose(dataclasses.replace(config, **given), DEFAULT, why, **values)

    def table(self, config: RunConfig) -> list[Decision]:
        """Return the decision on every setting, in the order of the settings; on `set` one for each option."""
        values: dict[str, Any] = {}
        for name, value in config.to_dict().items():
            values |= (_options(value) if name == "set" else {}) or {name: value}
        return [self.on(name)._replace(setting=name, value=value) for name, value in values.items()]


def _options(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of `set` by "set.GROUP.KEY"."""
    return {f"set.{group}.{key}": value for group, keys in settings.items() for key, value in keys.items()}
