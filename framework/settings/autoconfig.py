"""Derivation of settings from other settings, by the rules of utils/autoconfig.json.

A rule is {"when": {...}, "set": {...}, "why": "..."}. A condition maps a setting ("model") or a property of a
plug-in ("criterion.granularity") to the required value, to a list of allowed values, or to "*" for anything but
null. Settings that the user gave are never changed, and the first rule that fills a setting wins. A plug-ins
folder may contain an autoconfig.json, whose rules take precedence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from secateur.framework.plugins.registry import ROOT, registry
from secateur.framework.settings.run_config import FLAGS, GROUPS, KINDS, RunConfig, parse_values
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import read_json
from secateur.utils.suggest import unknown

SHIPPED = ROOT / "utils" / "autoconfig.json"
FACTS = ("name", "granularity", "schedule", "when", "paper", "trainer")
CONDITIONS = [*FLAGS, *(f"{group}.{fact}" for group in GROUPS for fact in FACTS)]
RULE_KEYS = ("when", "set", "why")


class Fill(NamedTuple):
    """A setting that autoconfig filled, with the reason."""

    field: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"autoconfig: {self.field} = {json.dumps(self.value)} ({self.why})"


@dataclass(frozen=True)
class Rule:
    """A checked rule and its file."""

    when: dict[str, Any]
    set: dict[str, Any]
    why: str
    file: Path

    def holds(self, config: RunConfig) -> bool:
        """Whether all conditions are met."""
        return all(_meets(_fact(name, config), wanted) for name, wanted in self.when.items())

    def explain(self, config: RunConfig) -> str:
        """Return the reason, with {field} replaced by the value of the field."""
        try:
            return self.why.format_map({name: getattr(config, name) for name in FLAGS})
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise UsageError(f"{self.file}: why {self.why!r} names no setting: {error}") from error


def fill(config: RunConfig, folders: Sequence[Path] = ()) -> list[Fill]:
    """Fill settings of `config` that the user did not give; return the filled settings in order.

    `folders` are the plug-ins folders. Without autoconfig `outer_layer_pruning` is False unless given.
    Raises UsageError for a malformed rule file or an unknown plug-in name.
    """
    filled = []
    if config.autoconfig:
        taken = set(config.given)
        for rule in load_rules(folders):
            if rule.set.keys() <= taken or not rule.holds(config):
                continue
            for name, value in rule.set.items():
                if name not in taken:
                    taken.add(name)
                    setattr(config, name, value)
                    filled.append(Fill(name, value, rule.explain(config)))
    if config.outer_layer_pruning is None:
        config.outer_layer_pruning = False
    return filled


def load_rules(folders: Sequence[Path] = ()) -> list[Rule]:
    """Return the checked rules of the plug-ins folders, followed by those of Secateur."""
    files = [folder / "autoconfig.json" for folder in folders]
    return [rule for file in [*filter(Path.is_file, files), SHIPPED] for rule in _read(file)]


def _read(file: Path) -> list[Rule]:
    rules = read_json(file)
    if not isinstance(rules, list):
        raise UsageError(f"{file} must hold a list of rules")
    return [_check(rule, f"{file}, rule {number}", file) for number, rule in enumerate(rules, 1)]


def _check(rule: Any, where: str, file: Path) -> Rule:
    if not isinstance(rule, dict) or not isinstance(rule.get("why"), str):
        raise UsageError(f'{where} must be {{"when": {{...}}, "set": {{...}}, "why": "..."}}')
    for key in rule:
        if key not in RULE_KEYS:
            raise UsageError(f"{where}: {unknown('key', key, RULE_KEYS)}")
    when, values = rule.get("when", {}), rule.get("set")
    if not isinstance(when, dict) or not isinstance(values, dict):
        raise UsageError(f"{where}: when and set must be mappings")
    for name in when:
        if name not in CONDITIONS:
            raise UsageError(f"{where}: {unknown('condition', name, CONDITIONS)}")
    return Rule(when, parse_values(values, where), rule["why"], file)


def _fact(name: str, config: RunConfig) -> Any:
    group, dot, fact = name.partition(".")
    if not dot:
        return getattr(config, name)
    field = GROUPS[group]
    return getattr(registry.describe(KINDS[field], getattr(config, field)), fact)


def _meets(fact: Any, wanted: Any) -> bool:
    if wanted == "*":
        return fact is not None
    return fact in (wanted if isinstance(wanted, list) else [wanted])
