"""Layers of settings: one precedence, and one function that merges them."""

import itertools
import re
from typing import Any

import pytest

from secateur.framework.settings import decisions as sources
from secateur.framework.settings.layers import Layer, Layers, merge
from secateur.framework.settings.run_config import RunConfig
from tests import ROOT
from tests.command_line import resolved

#: from the highest precedence to the lowest; the plug-ins of a preset are two layers
PRECEDENCE = (
    sources.COMMAND_LINE, sources.PRESET, sources.FILE, sources.DIALECT, sources.CHECKPOINT, sources.PRESET,
    sources.IMPLIED, sources.RULE, sources.RECOMMENDED, sources.DEFAULT,
)  # fmt: skip


@pytest.mark.parametrize(("above", "below"), list(itertools.combinations(range(len(PRECEDENCE)), 2)))
def test_of_two_layers_the_first_that_has_a_setting_decides(above: int, below: int) -> None:
    layers = [Layer(source, {}) for source in PRECEDENCE]
    layers[above] = Layer(PRECEDENCE[above], {"epochs": 1, "seed": 0}, {"epochs": "above"})
    layers[below] = Layer(PRECEDENCE[below], {"epochs": 2, "loss": "a"}, {"epochs": "below", "loss": "only here"})
    found = merge(layers)
    assert list(found) == ["epochs", "seed", "loss"]
    assert found["epochs"] == ("epochs", 1, PRECEDENCE[above], "above")
    assert found["seed"] == ("seed", 0, PRECEDENCE[above], "")
    assert found["loss"] == ("loss", "a", PRECEDENCE[below], "only here")


@pytest.mark.parametrize("value", [None, False, 0, "", ()])
def test_a_layer_decides_by_any_value_that_it_has(value: Any) -> None:
    assert merge([Layer("a", {"x": value}), Layer("b", {"x": 3})])["x"].value == value


def test_options_of_plugins_are_merged_one_by_one_and_no_layer_is_changed() -> None:
    first, second = {"criterion": {"p": 1}}, {"criterion": {"p": 2, "q": 3}, "model": {"d": 4}}
    found = merge([Layer("a", {"set": first}), Layer("b", {"set": second}), Layer("c", {"set": {"loss": {}}})])
    assert found["set"].value == {"criterion": {"p": 1, "q": 3}, "model": {"d": 4}, "loss": {}}
    assert first == {"criterion": {"p": 1}} and second == {"criterion": {"p": 2, "q": 3}, "model": {"d": 4}}


def test_the_layers_of_a_run_are_merged_in_the_order_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[str] = []
    add = Layers.add

    def spy(layers: Layers, source: str, *given: Any) -> None:
        added.append(source)
        add(layers, source, *given)

    monkeypatch.setattr(Layers, "add", spy)
    monkeypatch.setattr("secateur.framework.settings.resolve.load_rules", lambda _: [AnyRule()])
    resolved({"checkpoint_name": "a"}, saved=RunConfig())
    assert tuple(added) == PRECEDENCE
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("| layer | content |")[1].split("\n\n")[0]
    assert tuple(re.findall(r"^\| ([a-z ]+) \|", table, re.MULTILINE)) == PRECEDENCE


class AnyRule:
    """A rule of an autoconfig.json that sets nothing."""

    set: dict[str, Any] = {}

    def holds(self, _: Any) -> bool:
        """Always."""
        return True

    def explain(self, _: Any) -> str:
        """Return a reason."""
        return "always"
