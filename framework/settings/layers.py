"""Settings from several sources, merged by one precedence."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.framework.settings.decisions import Decision, Decisions
from secateur.framework.settings.run_config import RunConfig


@dataclass(frozen=True)
class Layer:
    """Values of settings from one source, and the reasons for them by setting."""

    source: str
    values: Mapping[str, Any]
    why: Mapping[str, str] = field(default_factory=dict)


def merge(layers: Iterable[Layer]) -> dict[str, Decision]:
    """Return the decision on each setting: the first layer that has it wins.

    Options of plug-ins, the setting `set`, are merged option by option.

    Args:
        layers: The layers, highest precedence first.
    """
    merged: dict[str, Decision] = {}
    for layer in layers:
        for name, value in layer.values.items():
            if name not in merged:
                merged[name] = Decision(name, value, layer.source, layer.why.get(name, ""))
            elif name == "set":
                above = merged[name]
                groups = {**value, **above.value}
                joined = {group: {**value.get(group, {}), **above.value.get(group, {})} for group in groups}
                merged[name] = above._replace(value=joined)
    return merged


class Layers:
    """Layers of settings, added from the highest precedence to the lowest."""

    def __init__(self, kind: type[RunConfig] = RunConfig) -> None:
        self._kind = kind
        self._layers: list[Layer] = []

    def add(self, source: str, values: Mapping[str, Any], why: Mapping[str, str] | str = "") -> None:
        """Add a layer below the others; `why` is the reason for all its values, or by setting."""
        reasons = dict.fromkeys(values, why) if isinstance(why, str) else why
        self._layers.append(Layer(source, values, reasons))

    @property
    def given(self) -> set[str]:
        """Names of the settings in any layer."""
        return set(merge(self._layers))

    @property
    def config(self) -> RunConfig:
        """The settings of the layers so far, over the defaults."""
        return self._kind(**{name: decision.value for name, decision in merge(self._layers).items()})

    def record(self, decisions: Decisions) -> None:
        """Record the decision on each setting."""
        for decision in merge(self._layers).values():
            decisions.record(decision)
