"""Settings are frozen, merged by one precedence, and every choice that is not the user's is recorded."""

import copy
import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur import build, save_model
from secateur.framework.commands.listing import explained_run
from secateur.framework.settings import decisions as sources
from secateur.framework.settings.decisions import USER, Decision, Decisions, Reasoned, because
from secateur.framework.settings.oracle_config import StudyConfig
from secateur.framework.settings.resolve import Request, read_request, resolve
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.run_folder import RunFolder
from tests import ROOT
from tests.command_line import resolved

Command = Callable[..., Any]
SAVED = RunConfig(val_share=0.25, num_classes=10, train_memory_format="contiguous", note="of another run")

#: flags, config file, and the kind of settings
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any], type[RunConfig]]] = {
    "nothing": ({}, {}, RunConfig),
    "flags over a file": ({"epochs": "3", "set": ("criterion.p=1",)}, {"epochs": 4, "protect": ["a"]}, RunConfig),
    "options on both": ({"set": ("loss.a=1",)}, {"set": {"loss": {"b": 2}, "model": {"c": [3]}}}, RunConfig),
    "rounds": ({"thresholds": "30,60", "prune_criterion": "MagBased"}, {}, RunConfig),
    "a preset over a file": ({"l0": True}, {"prune_criterion": "SNIP", "hoyer_square": True}, RunConfig),
    "another program": ({"pruning_type": "biased_loss", "bypass": "true", "epochs": "9"}, {}, RunConfig),
    "a checkpoint": ({"checkpoint_name": "a"}, {}, RunConfig),
    "an evaluation": ({"eval": True, "attack": "FGSM"}, {"test_scheme": "Accuracy"}, RunConfig),
    "a study": ({"samples": "9", "criterions": ("SNAP",)}, {"eval": False}, StudyConfig),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_resolving_is_pure_and_its_result_is_frozen(name: str) -> None:
    flags, file, kind = REQUESTS[name]

    def once() -> tuple[Request, RunConfig, list[str], list[Any]]:
        request = read_request(flags, file, "recipe", kind)
        before = copy.deepcopy(request)
        config, decisions = resolve(request, lambda _: ("saved", SAVED))
        again = resolve(request, lambda _: ("saved", SAVED))
        assert (again[0], again[1].notes) == (config, decisions.notes) and request == before
        return request, config, decisions.notes, decisions.table(config)

    given, saved = copy.deepcopy((flags, file)), copy.deepcopy(SAVED)
    assert once() == once()
    assert (flags, file) == given and saved == SAVED
    request, config, _, table = once()
    names = list(dict.fromkeys(row.setting.split(".")[0] for row in table))  # options of plug-ins have rows
    assert names == list(config.to_dict()) and type(config) is kind
    for frozen, field in ((config, "epochs"), (request, "flags")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, None)


#: command lines; those of a checkpoint use that of `trained`
LINES = (
    "", "--prune_criterion SNIP --pruning_limit 0.9", "--prune_criterion MagBased --n_rounds 3",
    "--prune_criterion SNAP --frequency 5 --group_size 2", "--l0", "--hoyer_square", "--group_hoyer_square",
    "--prune_criterion EmptyCrit --T 2", "--pruning_type biased_loss --epochs 8 --bypass", "--pruning_method 22",
    "--thresholds 30,60 --prune_criterion LossBased", "--disable_autoconfig --output_dim 10",
    "--input_dim 1,30,30",
    "--prune_criterion LossBased --set criterion.temperature=3", "--prune_criterion IMP --fused off --no_masking",
    "--prune_criterion SNAPitDuring --schedule after --prune_delay 2", "--prune_criterion SNAP --round_to auto",
    "--prune_criterion Combinatorial --fixed_layer 1", "--checkpoint_name trained", "--eval",
    "--eval --attack FGSM",
)  # fmt: skip


@pytest.fixture
def trained(command: Command) -> Path:
    """The run folder results/trained with a LeNet5 and its settings, which differ from the defaults."""
    folder = RunFolder(Path("results/trained"))
    folder.make_places()
    model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    save_model(model, folder.checkpoint("LeNet5"))
    folder.write_settings(*explained_run(*command("--val_share", "0.25", "--batch_size", "64")[3:5]))
    return folder.path


@pytest.mark.parametrize("line", LINES)
def test_the_record_of_a_run_tells_each_choice_and_repeats_the_settings(
    command: Command, trained: Path, line: str, tmp_path: Path
) -> None:
    result = command(*line.split())
    assert result.code == 0, result.err
    config, decisions = explained_run(result.config, result.decisions)
    folder = RunFolder(tmp_path)
    folder.write_settings(config, decisions)
    told = {row["setting"]: row for row in json.loads(folder.decisions.read_text())}
    chosen = {row.setting: row for row in decisions.table(config)}
    assert told.keys() == {name for name, row in chosen.items() if row.source not in USER}
    for name, value in config.to_dict().items():
        default = json.loads(json.dumps(RunConfig().to_dict()[name]))
        if name in told:
            assert told[name]["value"] == value and told[name]["source"], name
        if name in told and value != default:
            assert told[name]["why"] not in ("", "of the flag"), name
        assert name in told or name in decisions.given, name

    again = command("--config", folder.config)
    assert again.code == 0, again.err
    assert again.config == config
    assert again.notes == again.decisions.remarks
    repeated, more = explained_run(again.config, again.decisions)
    assert repeated == config
    assert {row.source for row in more.table(repeated)} == {"config file"}


#: from the highest precedence to the lowest; the plug-ins of a preset are two layers
PRECEDENCE = (
    sources.COMMAND_LINE, sources.PRESET, sources.FILE, sources.DIALECT, sources.CHECKPOINT, sources.PRESET,
    sources.IMPLIED, sources.RULE, sources.RECOMMENDED, sources.DEFAULT,
)  # fmt: skip


def merged(*layers: Reasoned) -> dict[str, Decision]:
    """The decision on each setting by layers of the sources in `PRECEDENCE`, the first of which are given."""
    decisions = Decisions()
    for source, layer in zip(PRECEDENCE, layers, strict=False):
        decisions.add(source, layer)
    return {row.setting: row for row in decisions.table(decisions.config)}


@pytest.mark.parametrize(("above", "below"), list(itertools.combinations(range(len(PRECEDENCE)), 2)))
def test_of_two_layers_the_first_that_has_a_setting_decides(above: int, below: int) -> None:
    first: Reasoned = {"epochs": (1, "above"), "seed": (0, "")}
    second: Reasoned = {"epochs": (2, "below"), "loss": ("a", "only here")}
    found = merged(*(first if at == above else second if at == below else {} for at in range(len(PRECEDENCE))))
    assert {row for row in found.values() if row.why != "of the flag"} == {
        ("epochs", 1, PRECEDENCE[above], "above"),
        ("seed", 0, PRECEDENCE[above], ""),
        ("loss", "a", PRECEDENCE[below], "only here"),
    }


@pytest.mark.parametrize("value", [None, False, 0, ""])
def test_a_layer_decides_by_any_value_that_it_has(value: Any) -> None:
    assert merged(because({"note": value}), because({"note": 3}))["note"].value == value


def test_options_of_plugins_are_merged_one_by_one_and_no_layer_is_changed() -> None:
    first, second = {"criterion": {"p": 1}}, {"criterion": {"p": 2, "q": 3}, "model": {"d": 4}}
    layers = because({"set": first}), because({"set": second}, "why"), because({"set": {"loss": {}}})
    found = {name: row[1:] for name, row in merged(*layers).items() if name.startswith("set")}
    assert found == {
        "set.criterion.p": (1, PRECEDENCE[0], ""),
        "set.criterion.q": (3, PRECEDENCE[1], "why"),
        "set.model.d": (4, PRECEDENCE[1], "why"),
    }
    assert first == {"criterion": {"p": 1}} and second == {"criterion": {"p": 2, "q": 3}, "model": {"d": 4}}


def test_each_option_of_a_plugin_has_a_source_of_its_own(command: Command, tmp_path: Path) -> None:
    Path("recipe.yaml").write_text("set: {criterion: {size: 2, order: 3}, loss: {a: 1}}\nloss: CrossEntropy\n")
    given = {"set": ("criterion.order=4",), "fixed_layer": "1", "prune_criterion": "Combinatorial"}
    config, decisions = resolved(given, Path("recipe.yaml"))
    assert config.set == {"criterion": {"size": 2, "order": 4, "layer": 1}, "loss": {"a": 1}}
    rows = {row.setting: (row.value, row.source, row.why) for row in decisions.table(config)}
    assert rows["set.criterion.order"] == (4, sources.COMMAND_LINE, "")
    assert rows["set.criterion.size"] == (2, sources.FILE, "")
    assert rows["set.criterion.layer"] == (1, sources.IMPLIED, "--fixed_layer")
    assert rows["set.loss.a"] == (1, sources.FILE, "") and "set" not in rows
    assert "implied: set.criterion.layer = 1 (--fixed_layer)" in decisions.notes

    folder = RunFolder(tmp_path)
    folder.write_settings(config, decisions)
    told = [row for row in json.loads(folder.decisions.read_text()) if row["setting"].startswith("set")]
    layer = {"setting": "set.criterion.layer", "value": 1, "source": sources.IMPLIED, "why": "--fixed_layer"}
    assert told == [layer]


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize(
    ("setting", "given"),
    [
        ("checkpoint_model", "LeNet5_finished.safetensors"), ("checkpoint_name", "trained"),
        ("checkpoint_name", "results/trained"), ("data_dir", "pictures"),
    ],
)  # fmt: skip
def test_the_full_form_of_a_given_name_remains_the_choice_of_the_user(
    command: Command, trained: Path, setting: str, given: str, by_file: bool
) -> None:
    Path("recipe.yaml").write_text(f"{setting}: {given}\n")
    result = command("--eval", *(("--config", "recipe.yaml") if by_file else (f"--{setting}", given)))
    assert result.code == 0, result.err
    row = result.decisions.on(setting)
    assert getattr(result.config, setting) != given
    assert (row.source, row.why) == (sources.FILE if by_file else sources.COMMAND_LINE, "")
    assert result.decisions.on("run_name")[2:] == (sources.DEFAULT, "by the settings of the run")


def test_the_layers_of_a_run_are_merged_in_the_order_of_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[str] = []
    add = Decisions.add

    def spy(decisions: Decisions, source: str, layer: Reasoned) -> None:
        added.append(source)
        add(decisions, source, layer)

    monkeypatch.setattr(Decisions, "add", spy)
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


@pytest.mark.parametrize(
    ("line", "setting", "source"),
    [
        ("--prune_criterion SNAP --round_to auto --threads 1", "round_to", sources.MEASURED),
        ("--device auto", "device", sources.FOUND),
        ("--config nulls.yaml --threads 1", "scope", sources.DEFAULT),
        ("--config l0.yaml --hoyer_square", "l0", sources.DEFAULT),
        ("--prune_criterion SNAP --frequency 5", "pruning_momentum", sources.DEFAULT),
    ],
)
def test_a_value_that_the_program_put_in_place_of_a_given_one_is_its_own_choice(
    command: Command, line: str, setting: str, source: str
) -> None:
    Path("nulls.yaml").write_text("scope: null\nbudget: null\n")
    Path("l0.yaml").write_text("l0: true\n")
    result = command(*line.split())
    assert result.code == 0, result.err
    config, decisions = explained_run(result.config, result.decisions)
    rows = {row.setting: row for row in decisions.table(config)}
    assert rows[setting].source == source and rows[setting].value not in ("auto", None)
    if setting == "pruning_momentum":
        assert rows[setting].why == "of the schedule iterative"


def test_the_line_of_a_decision_that_was_replaced_is_not_kept() -> None:
    decisions = Decisions()
    decisions.add(sources.IMPLIED, {"schedule": ("iterative", "a")})
    decisions.note_all()
    decisions.choose(decisions.config, sources.DEFAULT, "b", schedule=None)
    assert decisions.notes == []
