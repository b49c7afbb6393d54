"""Settings that plug-ins recommend and rules add: never over what the user gave, and with the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rounds import MEASURES
from secateur.framework.plugins.registry import registry
from secateur.framework.settings.decisions import RECOMMENDED, Decision
from secateur.framework.settings.recommended import load_rules, recommended
from secateur.framework.settings.run_config import KINDS, RunConfig, parse_values
from secateur.utils.errors import UsageError
from tests.command_line import resolved

Command = Callable[..., Any]


def write_rules(folder: Path, *rules: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "autoconfig.json").write_text(json.dumps(rules))
    return folder


@pytest.mark.parametrize("criterion", registry.names("criterions"))
def test_outer_layers_are_pruned_by_weight_criterions_and_kept_by_channel_ones(criterion: str) -> None:
    config, decisions = resolved({"prune_criterion": criterion})
    facts = registry.describe("criterions", criterion)
    wanted = facts.granularity != "channel" and criterion != "EmptyCrit"
    assert config.outer_layer_pruning is wanted
    made = {row.setting: row for row in decisions.table(config) if row.source == RECOMMENDED}
    for_it = {name for name, one in facts.recommended.items() if not isinstance(one, dict) or facts.when in one}
    assert made.keys() == {"outer_layer_pruning"} | for_it | ({"train_scheme"} if facts.trainer else set())
    assert criterion in made["outer_layer_pruning"].why and made["outer_layer_pruning"].value is wanted
    assert not facts.trainer or made["train_scheme"] == Decision(
        "train_scheme", facts.trainer, RECOMMENDED, f"{criterion} requires it"
    )


def test_every_decision_is_said_in_one_line(command: Command) -> None:
    notes = command("--prune_criterion", "SNIP").notes
    assert notes == ["recommended: outer_layer_pruning = true (SNIP ranks single weights)"]


def test_what_the_user_gave_stays(command: Command) -> None:
    result = command("--prune_criterion", "SNIP", "--no_outer_layer_pruning")
    assert result.config.outer_layer_pruning is False and result.notes == []


def test_what_a_config_file_gave_stays(command: Command, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("prune_criterion: SNIP\nouter_layer_pruning: false\n")
    assert command("--config", tmp_path / "recipe.yaml").config.outer_layer_pruning is False


def test_no_autoconfig_turns_it_off(command: Command) -> None:
    result = command("--prune_criterion", "SNIP", "--no_autoconfig")
    assert result.config.outer_layer_pruning is False and result.notes == []


def test_a_plugin_that_inherits_its_granularity_is_understood(plugins: Path, command: Command) -> None:
    source = "from secateur.criterions.SNIP import SNIP as Base\n\nclass Heir(Base):\n    pass\n"
    (plugins / "criterions" / "Heir.py").write_text(source)
    assert command("--plugins", plugins, "--prune_criterion", "Heir").config.outer_layer_pruning is True


def test_rules_of_a_plugins_folder_go_first(plugins: Path, command: Command) -> None:
    write_rules(
        plugins,
        {
            "when": {"prune_criterion": ["ByWeight", "Other"], "criterion.when": "during"},
            "set": {"outer_layer_pruning": False, "epochs": 40},
            "why": "{prune_criterion} is slow on {data_set}",
        },
        {"when": {"model": "VGG16"}, "set": {"batch_size": 64}, "why": "small memory"},
    )
    result = command("--plugins", plugins, "--prune_criterion", "ByWeight")
    assert (result.config.outer_layer_pruning, result.config.epochs) == (False, 40)
    assert result.config.batch_size == 128
    assert "rule: epochs = 40 (ByWeight is slow on FASHION_MINI)" in result.notes
    base = ("--plugins", plugins, "--prune_criterion", "ByWeight")
    chosen = command(*base, "--epochs", "2", "--model", "VGG16")
    assert (chosen.config.epochs, chosen.config.batch_size) == (2, 64)


def test_what_a_rule_sets_is_checked_like_a_flag(plugins: Path, command: Command) -> None:
    write_rules(plugins, {"when": {}, "set": {"epochs": -3}, "why": "no reason"})
    result = command("--plugins", plugins)
    assert result.code == 2 and "at least 0, got -3" in result.err


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"when": {"modl": "x"}, "set": {}, "why": ""}, "unknown condition 'modl': did you mean 'model'?"),
        ({"when": {"criterion.granularit": "x"}, "set": {}, "why": ""}, "'criterion.granularity'"),
        ({"when": {}, "set": {"epoch": 3}, "why": ""}, "unknown setting 'epoch': did you mean 'epochs'?"),
        ({"when": {}, "set": {"epochs": "many"}, "why": ""}, "epochs must be an integer"),
        ({"when": {}, "sets": {}, "why": ""}, "unknown key 'sets': did you mean 'set'?"),
        ({"when": {}, "set": {}}, "why"),
        ({"when": [], "set": {}, "why": ""}, "mappings"),
        ("rule", "must be"),
    ],
)
def test_a_malformed_rule_is_an_error_that_names_the_file(tmp_path: Path, rule: object, expected: str) -> None:
    folder = write_rules(tmp_path / "mine", {"when": {}, "set": {}, "why": "fine"}, rule)
    with pytest.raises(UsageError) as error:
        load_rules([folder])
    assert f"{folder / 'autoconfig.json'}, rule 2" in str(error.value)
    assert expected in str(error.value)


def test_a_file_that_is_no_list_of_rules_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "autoconfig.json").write_text("{}")
    with pytest.raises(UsageError, match="list of rules"):
        load_rules([tmp_path])
    (tmp_path / "autoconfig.json").write_text("[\n{]")
    with pytest.raises(UsageError, match="autoconfig.json, line 2"):
        load_rules([tmp_path])


def test_a_reason_with_an_unknown_name_is_an_error(plugins: Path, command: Command) -> None:
    write_rules(plugins, {"when": {}, "set": {"epochs": 3}, "why": "{modl} is big"})
    result = command("--plugins", plugins)
    assert result.code == 2 and "names no setting" in result.err and "autoconfig.json" in result.err


def test_an_unknown_criterion_is_named_before_any_rule_asks_for_its_facts() -> None:
    with pytest.raises(UsageError, match="did you mean 'SNIP'"):
        resolved({"prune_criterion": "SNIPP"})


@pytest.mark.parametrize("kind", KINDS.values())
def test_what_our_plugins_recommend_are_settings(kind: str) -> None:
    for name in registry.names(kind):
        for setting, value in registry.describe(kind, name).recommended.items():
            for one in value.values() if isinstance(value, dict) else (value,):
                parse_values({setting: one})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{'epoch': 3}", "unknown setting 'epoch': did you mean 'epochs'?"),
        ("{'epochs': 'x'}", "must be an integer"),
    ],
)
def test_a_wrong_recommendation_names_its_plugin(
    command: Command, plugins: Path, settings: str, expected: str
) -> None:
    source = f"from secateur.criterions.SNIP import SNIP\n\n\nclass Odd(SNIP):\n    recommended = {settings}\n"
    (plugins / "criterions" / "Odd.py").write_text(source)
    result = command("--plugins", plugins, "--prune_criterion", "Odd")
    assert result.code == 2 and "Odd.recommended" in result.err and expected in result.err


def test_rules_go_before_recommendations(command: Command, plugins: Path) -> None:
    write_rules(plugins, {"when": {}, "set": {"T": 3, "epochs": 40}, "why": "mine"})
    result = command("--plugins", plugins, "--prune_criterion", "MagBased", "--n_rounds", "2")
    assert (result.config.T, result.config.epochs, result.config.keep_share) == (3, 40, 0.05)
    sources = [result.decisions.source(name) for name in ("T", "epochs", "keep_share")]
    assert sources == ["rule", "rule", "recommended"]


def test_an_evaluation_needs_no_pruning_settings() -> None:
    config, decisions = resolved({"eval": True, "prune_criterion": "SNIP"})
    assert decisions.notes == [] and config.outer_layer_pruning is False


def test_a_star_stands_for_anything_but_nothing(plugins: Path, command: Command) -> None:
    write_rules(plugins, {"when": {"image_size": "*"}, "set": {"epochs": 3}, "why": "images of a size"})
    assert command("--plugins", plugins, "--image_size", "32").config.epochs == 3
    assert command("--plugins", plugins).config.epochs == 10


def test_an_attack_chooses_its_tester_in_an_evaluation_alone() -> None:
    assert recommended(RunConfig(eval=True, attack="FGSM"))["test_scheme"][0] == "AdversarialEvaluation"
    assert resolved({"eval": True, "attack": "FGSM"})[0].test_scheme == "AdversarialEvaluation"
    assert recommended(RunConfig(eval=True)) == {}
    given, decisions = resolved({"eval": True, "attack": "FGSM", "test_scheme": "Accuracy"})
    assert given.test_scheme == "Accuracy" and decisions.notes == []


FAMILY = ["MagBased", "L1", "BN", "LossBased", "TFO", "BiasedLoss", "BiasedLossTracked", "Fisher", "NvidiaFisher",
          "GraspChannel", "GradPreserve"]  # fmt: skip


@pytest.mark.parametrize("criterion", [*FAMILY, "SNAP", "EmptyCrit", "TaylorGate"])
def test_the_family_of_gradient_flow_trains_at_its_temperature(command: Command, criterion: str) -> None:
    filled = command("--prune_criterion", criterion).config.T
    assert filled == (5 if criterion in FAMILY else None)
    assert command("--prune_criterion", criterion, "--T", "2").config.T == 2
    assert command("--prune_criterion", criterion, "--bypass").config.T is None


def test_what_a_measure_needs_is_filled_in_and_the_users_own_flags_win(command: Command) -> None:
    tracked = command("--prune_criterion", "BiasedLossTracked").config
    assert (tracked.track_importance, tracked.use_l2, tracked.use_init) == (True, True, False)
    assert tracked.preserve_moment and tracked.options("criterion")["use_l2"] is True
    own = command("--prune_criterion", "BiasedLossTracked", "--no_use_l2", "--no_track_importance").config
    assert (own.track_importance, own.options("criterion")["use_l2"]) == (False, False)
    for spelling in ("--bypass", "--bypass=True", "--no_autoconfig"):
        plain = command("--prune_criterion", "BiasedLossTracked", spelling).config
        assert (plain.track_importance, plain.use_l2, plain.T) == (False, False, None)
    assert command("--prune_criterion", "BiasedLoss").config.options("criterion")["use_init"] is True
    assert command("--prune_criterion", "BiasedLoss", "--no_use_init").config.use_init is False
    assert command("--prune_criterion", "BiasedLoss", "--schedule", "before").config.use_init is False
    before = command("--prune_criterion", "BiasedLossTracked", "--schedule", "iterative").config
    assert (before.track_importance, before.use_l2) == (False, True)
    grad = command("--prune_criterion", "GradPreserve").config
    assert grad.grasp_T == 1 and command("--prune_criterion", "GradPreserve", "--grasp_T", "3").config.grasp_T == 3
    set_ = command("--prune_criterion", "GradPreserve", "--set", "criterion.grasp_temperature=4").config
    assert set_.options("criterion")["grasp_temperature"] == 4


def test_settings_are_recommended_by_the_class_whatever_its_paper(command: Command, tmp_path: Path) -> None:
    (tmp_path / "plug" / "criterions").mkdir(parents=True)
    (tmp_path / "plug" / "criterions" / "FlowWeights.py").write_text(
        "from secateur import Criterion\n\n\nclass FlowWeights(Criterion):\n    granularity = 'weight'\n"
        "    paper = 'arXiv:2009.11839'\n\n    def score(self, model, batches, loss, groups=None):\n"
        "        return {}\n"
    )
    (tmp_path / "plug" / "criterions" / "MyFlow.py").write_text(
        "from secateur.criterions.MagBased import MagBased\n\n\nclass MyFlow(MagBased):\n    paper = 'my own'\n"
    )
    for criterion, expected in (("FlowWeights", (0, None)), ("MyFlow", (0.05, 5))):
        config = command("--plugins", tmp_path / "plug", "--prune_criterion", criterion, "--n_rounds", "2").config
        assert (config.keep_share, config.T) == expected


def test_rounds_of_gradient_flow_empty_no_layer_unless_told_to(command: Command) -> None:
    assert command("--prune_criterion", "MagBased", "--n_rounds", "3").config.keep_share == 0.05
    assert command("--prune_criterion", "MagBased", "--n_rounds", "3", "--keep_share", "0").config.keep_share == 0
    assert command("--prune_criterion", "MagBased", "--n_rounds", "3", "--bypass").config.keep_share == 0
    assert command("--prune_criterion", "MagBased").config.keep_share == 0
    assert command("--prune_criterion", "SNAP", "--n_rounds", "3").config.keep_share == 0


def test_all_measures_of_gradient_flow_and_no_other_get_their_published_settings() -> None:
    got = set()
    for name in registry.names("criterions"):
        config, _ = resolved({"prune_criterion": name, "schedule": "rounds"})
        if (config.T, config.keep_share) == (5, 0.05):
            got.add(name)
    assert got == set(MEASURES)


def test_values_for_a_schedule_follow_a_recommended_schedule(command: Command, plugins: Path) -> None:
    (plugins / "criterions").mkdir(exist_ok=True)
    (plugins / "criterions" / "InRounds.py").write_text(
        "from secateur.criterions.SNAP import SNAP\n\n\n"
        "class InRounds(SNAP):\n"
        '    recommended = {"schedule": "rounds", "keep_share": {"rounds": 0.2, "before": 0.1}}\n'
    )
    config = command("--plugins", plugins, "--prune_criterion", "InRounds").config
    assert (config.schedule, config.keep_share) == ("rounds", 0.2)
    config = command("--plugins", plugins, "--prune_criterion", "InRounds", "--schedule", "before").config
    assert (config.schedule, config.keep_share) == ("before", 0.1)


@pytest.mark.parametrize("schedule", [None, "before", "after", "rounds"])
def test_a_criterion_may_have_a_schedule_that_counts_batches(
    command: Command, plugins: Path, schedule: str | None
) -> None:
    (plugins / "criterions").mkdir(exist_ok=True)
    (plugins / "criterions" / "Often.py").write_text(
        "from secateur import Iterative\nfrom secateur.criterions.TaylorGate import TaylorGate\n\n\n"
        "class Often(TaylorGate):\n    schedule = Iterative(frequency=2, momentum=0.5)\n"
    )
    given = () if schedule is None else ("--schedule", schedule)
    result = command("--plugins", plugins, "--prune_criterion", "Often", *given)
    assert result.code == 0, result.err
