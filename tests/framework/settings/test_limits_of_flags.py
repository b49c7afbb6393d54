"""Numbers too large, texts too long and options that no optimizer takes: one line before anything is made."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.framework.commands.assemble import OTHER_STEPS, try_optimizer, with_fused
from secateur.framework.plugins.registry import OPTIMIZERS, option_names, registry
from secateur.framework.settings.checks import FIXED
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.field import Flag
from secateur.framework.settings.oracle_config import STUDY_FLAGS
from secateur.framework.settings.run_config import FLAGS, RunConfig, parse_values
from secateur.framework.storage.run_folder import _new_folder
from secateur.utils import memory
from secateur.utils.errors import UsageError
from secateur.utils.loading.loaders import make_loaders
from secateur.utils.memory import check_memory, is_out_of_memory

Command = Callable[..., Any]
ALL = FLAGS | STUDY_FLAGS
COUNTS = [name for name, flag in ALL.items() if flag.type is int]
TEXTS = [name for name, flag in ALL.items() if flag.type is str]
PATHS = [name for name, flag in ALL.items() if flag.path]


def refused(flag: Flag, text: Any) -> str:
    """The one line that the flag gives for a value."""
    with pytest.raises(UsageError) as caught:
        flag.check(parse_values({flag.name: text}, flags=ALL)[flag.name])
    line = str(caught.value)
    assert line.startswith(f"--{flag.name}") and "\n" not in line and len(line) < 300, line
    return line


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("digits", [10, 30, 400, 5000])
def test_every_count_has_an_upper_limit(name: str, digits: int) -> None:
    line = refused(ALL[name], "9" * digits)
    assert digits == 5000 or str(int(ALL[name].high or ALL[name].most)) in line


@pytest.mark.parametrize("name", COUNTS)
def test_the_limit_itself_is_allowed(name: str) -> None:
    flag = ALL[name]
    value = int(flag.high) if flag.high is not None else flag.most
    flag.check((value,) if flag.many else value)


@pytest.mark.parametrize("name", [name for name, flag in ALL.items() if flag.type is float])
@pytest.mark.parametrize("text", ["1e999", "-1e999", "nan", "9" * 400])
def test_no_number_of_a_flag_is_infinite(name: str, text: str) -> None:
    refused(ALL[name], text)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("text", ["x" * 5000, "\u00fc" * 3000, "a/" * 3000])
def test_a_text_has_a_longest_length(name: str, text: str) -> None:
    assert "4096" in refused(ALL[name], text)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("text", ["x" * 256, "a/" + "\u00fc" * 128, "x" * 256 + "/a"])
def test_each_part_of_a_path_has_a_longest_length(name: str, text: str) -> None:
    assert "255" in refused(ALL[name], text)


def test_flags_that_name_a_place_are_paths() -> None:
    assert set(PATHS) == {name for name, flag in ALL.items() if flag.metavar in ("DIR", "FILE", "FOLDER", "PATH")}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--snip_steps", "1000000000"],
        ["--threads", "1000000000"],
        ["--round_to", "9" * 400],
        ["--round_to", "\u00b2"],
        ["--device", "cuda:" + "9" * 5000],
        ["--compare_with", "x" * 300, "--eval"],
        ["--config", "x" * 5000],
        ["--model_path", "x" * 5000],
        ["--pretrained_path", "x" * 5000],
        ["--data_path", "x" * 5000],
        ["--plugins", "x" * 256],
        ["--plugins", "a/" * 3000],
        ["--pruning_config", "/etc/passwd/x", "--schedule", "iterative"],
        ["--set", "x" * 100_000],
        ["--set", "criterion.p=" + "[" * 2000],
        ["--set", "criterion.p=" + "x" * 300_000],
        ["--set", "criterion." + "x" * 100_000 + "=1"],
    ],
)
def test_absurd_values_are_one_short_line(command: Command, arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.code == 2 and result.err.count("\n") == 1 and "Traceback" not in result.err
    assert arguments[0].removesuffix("_path") in result.err or "config" in arguments[0] or "x" * 30 in result.err
    assert len(result.err) < 3100 and not Path("results").exists()


@pytest.mark.parametrize("name", ["\U00020000" * 60, "\u00fc" * 255, "x" * 255])
def test_a_run_name_of_long_characters_makes_a_folder(tmp_path: Path, name: str) -> None:
    folders = [_new_folder(RunConfig(results_dir=str(tmp_path), run_name=name)) for _ in range(3)]
    assert len({folder.name for folder in folders}) == 3
    assert all(len(os.fsencode(folder.name)) <= 255 for folder in folders)


# Memory


def test_more_memory_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: 2**30)
    check_memory(2**30, "it")
    with pytest.raises(UsageError, match="^it needs 2.0 GiB"):
        check_memory(2**31, "it")
    monkeypatch.setattr(memory, "memory_bytes", lambda: None)
    check_memory(2**80, "it")


def test_a_container_has_less_memory_than_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = memory.memory_bytes()
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "memory.max")
    for text, wanted in (("4096\n", 4096), ("max\n", whole)):
        memory.CGROUP.write_text(text)
        assert memory.memory_bytes() == wanted or text == "max\n"


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = registry.get("datasets", "FASHION_MINI")()
    monkeypatch.setattr(memory, "memory_bytes", lambda: 10**9)
    with pytest.raises(UsageError, match=r"image_size 8192.*GiB"):
        make_loaders(dataset, batch_size=2, seed=0, image_size=8192)


def test_a_scoring_batch_has_no_more_samples_than_the_set() -> None:
    loaders = make_loaders(registry.get("datasets", "FASHION_MINI")(), batch_size=10**6, seed=0)
    batches = loaders.scoring_batches("random", batches=1, samples=None, batch_size=10**6, seed=0, step=0)
    assert [len(inputs) for inputs, _ in batches] == [loaders.train.num_samples]


def test_what_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes")) and not is_out_of_memory(ValueError("allocate memory"))


# Options of optimizers

SET_BY_FLAGS = {flag.readers["optimizer"] for flag in FLAGS.values() if "optimizer" in flag.readers} - {"momentum"}
OPTIONS = [
    (optimizer, option)
    for optimizer in OPTIMIZERS
    for option in option_names(registry.get("optimizers", optimizer))
    if option not in {*FIXED["optimizer"], *SET_BY_FLAGS} and (optimizer, option) != ("SGD", "momentum")
]
ODD: list[Any] = [
    None, True, False, -1, 0, 2, 1.5, 10**30, 10**399, float("nan"), float("inf"), 1e308, "abc", "", [], {}, [0.9],
    [0.9, 0.99], [1, 2], ["a", "b"], [[1], [2]], [0.9, float("nan")], [0.1, 0.2, 0.3], {"a": 1},
]  # fmt: skip


def tried(optimizer: str, options: dict[str, Any], fused: str = "auto") -> str | None:
    """The line for options that the optimizer does not take; None where it steps with them."""
    try:
        config = RunConfig(optimizer=optimizer, set={"optimizer": options}, device="cpu", fused=fused)
        try_optimizer(with_fused(config, Decisions()))
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        assert "tensor(" not in str(error)
        return str(error)
    return None


@pytest.mark.parametrize(("optimizer", "option"), OPTIONS)
def test_odd_values_of_an_optimizers_option_are_one_line(optimizer: str, option: str) -> None:
    refusals = [line for line in (tried(optimizer, {option: value}) for value in ODD) if line]
    assert len(refusals) >= 15 and all(f"--set optimizer.{option}" in line for line in refusals)
    assert any(optimizer in line for line in refusals)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(OPTIMIZERS)), st.data())
def test_combinations_of_odd_values_are_one_line(optimizer: str, data: st.DataObject) -> None:
    names = [option for name, option in OPTIONS if name == optimizer]
    options = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(ODD), min_size=1))
    tried(optimizer, options, data.draw(st.sampled_from(["auto", "off"])))


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name not in ("ADADELTA", "RMSPROP")])
def test_another_way_to_step_switches_the_fused_one_off(optimizer: str) -> None:
    for option in OTHER_STEPS:
        config = RunConfig(optimizer=optimizer, set={"optimizer": {option: True}}, device="cpu")
        assert with_fused(config, Decisions()).fused == "off"
        line = tried(optimizer, {option: True}, "on")
        assert line is not None and option in line
    assert tried(optimizer, {"foreach": True}) is None
    assert tried(optimizer, {"differentiable": True}) is not None


def test_the_trial_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert tried("ADAM", {"amsgrad": True}) is None
    assert torch.equal(state, torch.get_rng_state())
