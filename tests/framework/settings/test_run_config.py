"""RunConfig: config files below the flags, `--set`, and the round trip through config.yaml."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.schedules.base import Rounds
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.settings.files import parse_settings
from secateur.framework.settings.run_config import FLAGS, KINDS, PLUGIN_OF, PRESETS, RunConfig
from secateur.utils.errors import UsageError
from tests import ROOT
from tests.command_line import resolved

Command = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write a config file."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_field_that_names_a_plugin_has_a_kind() -> None:
    assert set(KINDS.values()) == set(registry.kinds)
    assert set(PLUGIN_OF.values()) == set(KINDS)
    assert set(KINDS) <= set(FLAGS)


def test_every_fact_of_a_flag_is_about_flags_and_plugins_that_there_are() -> None:
    words = {*FLAGS["schedule"].choices, "pruning", "tracking", "loaders", "loop", "regulariser"}
    for name, flag in FLAGS.items():
        assert set(flag.readers) <= {*PLUGIN_OF, *words}, name
        assert flag.phase in ("", "training", "pruning") and flag.inherit in ("", "data", "test"), name
        if flag.needs is not None:
            other, values = flag.needs
            for value in values:
                FLAGS[other].check(value)
                assert isinstance(value, FLAGS[other].type), name
                assert other not in KINDS or value in registry.names(KINDS[other]), name
        for field, plugin in (flag.preset or {}).items():
            assert plugin in registry.names(KINDS[field]), name
    assert set(PRESETS) == {"l0", "hoyer_square", "group_hoyer_square"}


def test_every_option_that_a_flag_sets_is_one_of_a_plugin() -> None:
    for group, field in PLUGIN_OF.items():
        kind = KINDS[field]
        known = {option for name in registry.names(kind) for option in option_names(registry.get(kind, name))}
        assert {flag.readers[group] for flag in FLAGS.values() if group in flag.readers} <= known, group


@pytest.mark.parametrize(("word", "schedule"), [("rounds", Rounds), ("iterative", Iterative)])
def test_every_option_that_a_flag_sets_is_one_of_the_schedule(word: str, schedule: type) -> None:
    fields = {field.name for field in dataclasses.fields(schedule)}
    assert {flag.readers[word] for flag in FLAGS.values() if word in flag.readers} <= fields


def test_every_default_is_of_its_type_and_inside_its_limits() -> None:
    for name, flag in FLAGS.items():
        if name != "set":
            assert flag.parse(flag.default) == flag.default
            flag.check(flag.default)


def test_a_file_lies_below_the_flags(file: Callable[..., Path]) -> None:
    config, decisions = resolved({"epochs": "3"}, file("epochs: 7\nbatch_size: 32\n"))
    assert (config.epochs, config.batch_size) == (3, 32)
    assert decisions.given == {"epochs", "batch_size"} and decisions.flags == {"epochs"}


def test_settings_merge_option_by_option(file: Callable[..., Path]) -> None:
    path = file("set:\n  criterion: {p: 1, q: 2}\n  model: {hidden_dim: 4}\n")
    config, _ = resolved({"set": ("criterion.p=9", "optimizer.eps=1e-3")}, path)
    assert config.set == {
        "criterion": {"p": 9, "q": 2},
        "model": {"hidden_dim": 4},
        "optimizer": {"eps": 0.001},
    }


def test_json_and_yaml_say_the_same(file: Callable[..., Path]) -> None:
    values = {"epochs": 4, "protect": ["conv1"], "set": {"criterion": {"p": 2}}}
    from_json, _ = resolved({}, file(json.dumps(values), "recipe.json"))
    assert from_json == resolved({}, file(yaml.safe_dump(values)))[0]
    assert from_json.protect == ("conv1",)


def test_yaml_words_that_are_no_text_are_read_as_meant(file: Callable[..., Path]) -> None:
    text = "progress: off\nfused: on\nlearning_rate: 2e-3\n"
    config, _ = resolved({}, file(text + "run_name: 2020-01-02\nlr_milestones: 3,5\nprotect: fc\n"))
    assert (config.progress, config.fused, config.learning_rate) == ("off", "on", 0.002)
    assert (config.run_name, config.lr_milestones, config.protect) == ("2020-01-02", (3, 5), ("fc",))


def test_an_empty_file_gives_nothing(file: Callable[..., Path]) -> None:
    config, decisions = resolved({}, file("# nothing\n"))
    assert config == resolved()[0] and decisions.given == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3", "unknown setting 'epoch': did you mean 'epochs'?"),
        ("given: [model]", "unknown setting 'given'"),
        ("epochs: ten", "epochs must be an integer, got 'ten'"),
        ("epochs: true", "epochs must be an integer, got True"),
        ("epochs: 1.5", "epochs must be an integer, got 1.5"),
        ("epochs:", "epochs must be an integer, got null"),
        ("download: 3", "download must be true or false, got 3"),
        ("model: [a]", "model must be text, got ['a']"),
        ("set: 3", "set must be a mapping"),
        ("set: {criterio: {}}", "unknown group of"),
        ("set: {criterion: 3}", "set.criterion must be a mapping"),
        ("- a", "must contain settings as 'key: value', found list"),
        ("a: b\nepochs: [1\nx: y", "line 3"),
        ("epochs: 2020-99-99", "month must be in 1..12"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(file: Callable[..., Path], text: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        resolved({}, file(text))
    assert "recipe.yaml" in str(error.value) and expected in str(error.value)


def test_a_bad_json_file_is_an_error_that_names_the_line(file: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"recipe.json, line 2"):
        resolved({}, file('{"epochs": 3,\n oops}', "recipe.json"))


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="not text"):
        resolved({}, tmp_path / "image.yaml")
    with pytest.raises(UsageError, match="is a folder, not a regular file"):
        resolved({}, tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3", 3),
        ("true", True),
        ("[1, 2e2]", [1, 200.0]),
        ("abc", "abc"),
        ("", None),
        ("'1'", "1"),
    ],
)
def test_values_of_settings_are_yaml(text: str, value: object) -> None:
    assert parse_settings([f"model.a={text}"]) == {"model": {"a": value}}


def test_an_equals_sign_may_be_in_a_value() -> None:
    assert parse_settings(["model.name=a=b"]) == {"model": {"name": "a=b"}}


def test_paths_in_a_file_are_seen_from_the_file_if_they_exist_there(
    file: Callable[..., Path], tmp_path: Path
) -> None:
    for folder in ("data", "mine"):
        (tmp_path / folder).mkdir()
    config, _ = resolved({}, file("data_dir: data\nplugins: [mine, elsewhere]\npretrained: gone.safetensors\n"))
    assert config.data_dir == str(tmp_path / "data")
    assert config.plugins == (str(tmp_path / "mine"), "elsewhere")
    assert config.pretrained == "gone.safetensors"


def test_a_saved_run_name_follows_the_model_unless_it_was_chosen(file: Callable[..., Path]) -> None:
    saved = "model: LeNet5\nprune_criterion: SNIP\nrun_name: {}\ncheckpoint_model: LeNet5_finished\n"
    plain, _ = resolved({"model": "VGG16"}, file(saved.format("LeNet5_SNIP")))
    assert plain.run_name is None and plain.default_run_name() == "VGG16_SNIP"
    assert plain.checkpoint_model is None and plain.default_checkpoint_model() == "VGG16_finished"
    assert resolved({"model": "VGG16"}, file(saved.format("chosen")))[0].run_name == "chosen"


def test_an_evaluation_has_a_run_name_of_its_own() -> None:
    assert RunConfig(eval=True, model="VGG16").default_run_name() == "eval_VGG16"


def values_of(name: str) -> st.SearchStrategy[Any]:
    flag = FLAGS[name]
    one: st.SearchStrategy[Any] = {
        str: st.sampled_from(flag.choices) if flag.choices else st.text(min_size=1),
        bool: st.booleans(),
        int: st.integers(1, 10**9),
        float: st.floats(0, 0.999),
        dict: st.just({"criterion": {"p": 2, "q": [1, None, "on"]}}),
    }[flag.type]
    if flag.many:
        return st.lists(one, max_size=3).map(tuple)
    return st.none() | one if flag.optional else one


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({name: values_of(name) for name in FLAGS}))
def test_a_config_survives_the_way_through_yaml(values: dict[str, Any]) -> None:
    config = RunConfig(**values)
    again = RunConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict(), sort_keys=False)))
    assert again == config and again.to_dict() == config.to_dict()


def test_what_to_dict_gives_is_a_copy() -> None:
    config = RunConfig(set={"criterion": {"p": 1}})
    config.to_dict()["set"]["criterion"]["p"] = 2
    assert config.set == {"criterion": {"p": 1}}


@pytest.mark.parametrize("name", ["quick.yaml", "snipit_original.yaml"])
def test_the_recipes_we_ship_are_valid(command: Command, name: str) -> None:
    path = ROOT / "configs" / name
    result = command("--config", path)
    assert result.code == 0, result.err
    defaults = RunConfig()
    changed = {key for key in result.decisions.given if getattr(result.config, key) != getattr(defaults, key)}
    assert changed >= result.decisions.given - {"model"}  # a recipe repeats no default without need


def test_flags_win_over_the_file_on_the_command_line(command: Command, file: Callable[..., Path]) -> None:
    path = file("epochs: 7\ndownload: false\nprotect: [a, b]\n")
    config = command("--config", path, "--epochs", "2", "--download", "--protect", "c").config
    assert (config.epochs, config.download, config.protect) == (2, True, ("c",))


def test_a_bad_value_of_a_file_is_refused_like_a_flag(command: Command, file: Callable[..., Path]) -> None:
    result = command("--config", file("pruning_limit: 1.2\n"))
    assert result.code == 2 and "[0, 1), got 1.2" in result.err
