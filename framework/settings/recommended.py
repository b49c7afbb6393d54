"""Settings that plug-ins recommend, and rules for settings in the autoconfig.json of plug-ins folders.

A plug-in recommends settings with its class attribute `recommended`, a mapping from setting to value. A mapping
from schedule to value stands for a recommendation for these schedules only.

A rule is {"when": {...}, "set": {...}, "why": "..."}. A condition maps a setting ("model") or a property of a
plug-in ("criterion.granularity") to the required value, to a list of allowed values, or to "*" for anything but
null. Rules take precedence over recommendations, and the first rule that fills a setting wins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.decisions import Reasoned, because
from secateur.framework.settings.run_config import FLAGS, KINDS, PLUGIN_OF, RunConfig, parse_values
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import read_json
from secateur.utils.suggest import unknown

FACTS = ("name", "granularity", "schedule", "when", "paper", "trainer")
CONDITIONS = [*FLAGS, *(f"{group}.{fact}" for group in PLUGIN_OF for fact in FACTS)]
RULE_KEYS = ("when", "set", "why")
RANKS = {"weight": "ranks single weights", "both": "ranks weights and channels",
         "channel": "removes channels, not inputs and outputs"}  # fmt: skip


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


def recommended(config: RunConfig) -> Reasoned:
    """Return the settings that the plug-ins of a config recommend, and the reason for each.

    Raises UsageError for an unknown plug-in, and for a recommendation of an unknown setting or a wrong type.
    """
    if config.eval:
        testers = [name for name in registry.names("testers") if registry.describe("testers", name).attacks]
        return {"test_scheme": (testers[0], "the tester that attacks")} if config.attack else {}
    found: Reasoned = {}
    criterion = registry.describe("criterions", config.prune_criterion)
    own = criterion.recommended.get("schedule")
    schedule = config.schedule or (own if isinstance(own, str) else criterion.when)
    for name, kind in KINDS.items():
        plugin = registry.describe(kind, getattr(config, name))
        given = _for_schedule(plugin.recommended, schedule)
        found |= because(parse_values(given, f"{plugin.name}.recommended"), f"by {plugin.name}")
    if criterion.trainer:
        found["train_scheme"] = criterion.trainer, f"{criterion.name} requires it"
    ranks = RANKS.get(criterion.granularity, "") if criterion.prunes else "prunes nothing"
    outer = criterion.prunes and criterion.granularity != "channel"
    return found | {"outer_layer_pruning": (outer, f"{criterion.name} {ranks}")}


def _for_schedule(settings: Mapping[str, Any], schedule: str) -> dict[str, Any]:
    """Return the settings that are recommended for a schedule."""
    chosen = {name: value.get(schedule) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in chosen.items() if value is not None}


def load_rules(folders: Sequence[Path] = ()) -> list[Rule]:
    """Return the checked rules of the plug-ins folders, in order."""
    files = [folder / "autoconfig.json" for folder in folders]
    return [rule for file in filter(Path.is_file, files) for rule in _read(file)]


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
    field = PLUGIN_OF[group]
    return getattr(registry.describe(KINDS[field], getattr(config, field)), fact)


def _meets(fact: Any, wanted: Any) -> bool:
    if wanted == "*":
        return fact is not None
    return fact in (wanted if isinstance(wanted, list) else [wanted])
