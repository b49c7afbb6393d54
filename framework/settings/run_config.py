"""The settings of a run: one typed field per flag of the command line, and tables derived from their facts."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.settings.field import Flag, flags_of
from secateur.framework.settings.groups.data import Data
from secateur.framework.settings.groups.pruning import Pruning
from secateur.framework.settings.groups.run import Run
from secateur.framework.settings.groups.schedules import Schedules
from secateur.framework.settings.groups.testing import Testing
from secateur.framework.settings.groups.training import Training
from secateur.framework.settings.groups.what import What
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

Options = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunConfig(
    Run, Testing, Data, Schedules, Pruning, Training, What
):  # fields in the reverse order of the bases
    """The settings of one run, with the defaults of the command line; immutable.

    `resolve` makes them from a command line. A setting that is chosen later, such as a measured memory format,
    gives new settings, see `Decisions.choose`.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as YAML types, in the order of the fields."""
        values = {name: getattr(self, name) for name in flags_of(type(self))}
        return {
            name: list(value) if isinstance(value, tuple) else copy.deepcopy(value)
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "") -> RunConfig:
        """Return a config with these values.

        Raises UsageError, beginning with `source`, for an unknown key or a value of a wrong type.
        """
        return cls(**parse_values(values, source, flags_of(cls)))

    def options(self, group: str) -> dict[str, Any]:
        """Return the options of a reader of flags, see `Flag.to`: a plug-in, the pruning step or a schedule.

        For a plug-in these are its options of `--set`, and those of flags that it has and `--set` lacks.
        """
        flags = self._flags(group)
        if flags and group in PLUGIN_OF:
            field = PLUGIN_OF[group]
            accepted = option_names(registry.get(KINDS[field], getattr(self, field)))
            flags = {option: value for option, value in flags.items() if option in accepted}
        return flags | self.set.get(group, {})

    def asked_options(self, group: str) -> dict[str, Any]:
        """Return `options` with those that the plug-in lacks, without importing it."""
        return self._flags(group) | self.set.get(group, {})

    def _flags(self, group: str) -> dict[str, Any]:
        """Return the options that flags set."""
        values = {name: getattr(self, name) for name, flag in FLAGS.items() if group in flag.readers}
        return {
            FLAGS[name].readers[group]: None if value == FLAGS[name].none else value
            for name, value in values.items()
            if value not in (None, ()) and self.has_effect(name)
        }

    def has_effect(self, name: str) -> bool:
        """Whether the other setting that the flag needs, if any, has one of the needed values."""
        needs = FLAGS[name].needs
        return needs is None or getattr(self, needs[0]) in needs[1]

    @property
    def prunes(self) -> bool:
        """Whether the criterion prunes, or the trainer trains gates that do."""
        return registry.describe("criterions", self.prune_criterion).prunes or self.owns_gates

    @property
    def owns_gates(self) -> bool:
        """Whether the trainer trains gates that prune."""
        return registry.describe("trainers", self.train_scheme).owns_gates

    @property
    def attacks(self) -> bool:
        """Whether this run attacks a network."""
        attacks = registry.describe("testers", self.test_scheme).attacks
        return self.eval and (attacks or "attack" in self.asked_options("tester"))

    def default_run_name(self) -> str:
        """Return the default run name."""
        return f"eval_{self.model}" if self.eval else f"{self.model}_{'L0' if self.l0 else self.prune_criterion}"

    def default_checkpoint_model(self) -> str:
        """Return the default stem of the checkpoint."""
        return f"{self.model}_finished"


FLAGS: dict[str, Flag] = flags_of(RunConfig)
#: kinds of plug-ins by the flags that name them
KINDS = {name: flag.plugin for name, flag in FLAGS.items() if flag.plugin}
#: the flag that names the plug-in of a group of `--set GROUP.KEY=VALUE`
PLUGIN_OF = {flag.options: name for name, flag in FLAGS.items() if flag.options}
#: flags by the arguments of the library that they set
FLAG_OF = {option: name for name, flag in FLAGS.items() for option in flag.readers.values()}
PRESETS = {name: flag.preset for name, flag in FLAGS.items() if flag.preset}


def parse_values(
    values: Mapping[str, Any],
    source: str = "",
    flags: Mapping[str, Flag] = FLAGS,
    written: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Convert values to the types of their fields; UsageError names `source`, the key and the nearest match.

    `written` has the names to show for settings that were given under another one.
    """
    prefix = f"{source}: " if source else ""
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in flags:
            raise UsageError(prefix + unknown("setting", str(name), flags))
        shown = (written or {}).get(name, name)
        where = f"{prefix}{shown}" if source else f"--{shown}"
        parsed[name] = _parse_set(value, where) if name == "set" else flags[name].parse(value, where)
    return parsed


def _parse_set(value: Any, where: str) -> Options:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be a mapping of group to options, got {value!r}")
    for group, options in value.items():
        if group not in PLUGIN_OF:
            raise UsageError(unknown(f"group of {where}", str(group), PLUGIN_OF))
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise UsageError(f"{where}.{group} must be a mapping of option to value, got {options!r}")
    return {group: dict(options) for group, options in value.items()}


@contextlib.contextmanager
def as_written(written: Mapping[str, str]) -> Iterator[None]:
    """Let the UsageErrors of a block name the flags that the user wrote, see `Decisions.written`."""
    try:
        yield
    except UsageError as error:
        raise UsageError(in_flags(error, written)) from error


def in_flags(error: UsageError, written: Mapping[str, str] | None = None) -> str:
    """Return the message, with flags in place of the arguments that it names, where there are such flags.

    `written` has the flags to show for settings that were given by another one.
    """
    text = str(error)
    named = (error.argument,) if isinstance(error.argument, str) else error.argument or ()
    for argument in named:
        flag = FLAG_OF.get(argument, argument)
        if flag in FLAGS:
            text = re.sub(rf"(?<!-)\b{argument}=False\b", f"--no_{flag}", text)
            # a word of English is the argument only where it stands first
            text = re.sub(rf"(?<!-)\b{argument}\b", f"--{flag}", text, count=0 if "_" in argument else 1)
    for setting, flag in (written or {}).items():
        text = re.sub(rf"(?<![\w-])--{setting}\b", f"--{flag}", text)
    return text
