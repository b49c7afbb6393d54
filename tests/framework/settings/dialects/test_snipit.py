"""Flags by the names they have in another system."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from secateur.framework.settings.dialects.snipit import FLAGS, NEEDLESS, RENAMED, SWITCHES

Command = Callable[..., Any]


@pytest.mark.parametrize("name", SWITCHES)
def test_an_old_switch_does_what_its_name_says_and_names_the_new_one(name: str, command: Command) -> None:
    setting, _ = SWITCHES[name]
    criterion = ["--prune_criterion", "SNIP"]  # masks belong to weights
    result = command(f"--{name}", *criterion)
    assert getattr(result.config, setting) is False
    lines = [line for line in result.notes if line.startswith("deprecated")]
    assert len(lines) == 1
    assert f"--{name}" in lines[0]
    assert f"--no_{setting}" in lines[0]
    assert getattr(command(f"--no_{setting}", *criterion).config, setting) is False


def test_old_and_new_flags_that_contradict_each_other_are_refused(command: Command) -> None:
    result = command("--disable_saliency", "--saliency")
    assert result.code == 2
    assert "--disable_saliency and --saliency contradict" in result.err


def test_flags_with_a_value_go_by_their_old_names(command: Command) -> None:
    result = command("--output_dim", "10", "--N", "60000")
    assert result.config.num_classes == 10
    assert [line.split(":")[0] for line in result.notes[:2]] == ["deprecated", "--N has no effect"]
    assert {*FLAGS} == {*SWITCHES, *NEEDLESS, *RENAMED, "model_path", "pruning_rate", "growing_rate"}


@pytest.mark.parametrize("value", ["True", "true"])
def test_switches_may_be_given_the_truth_values_of_other_systems(value: str, command: Command) -> None:
    assert command("--tuning", value, "--no_download").config.tuning is True
    assert command(f"--tuning={value}").config.tuning is True
    config = command("--download", "False", "--saliency=false", "--epochs", "3").config
    assert (config.download, config.saliency, config.epochs) == (False, False, 3)
    assert command("--disable_saliency", "False").config.saliency is True
    assert command("--disable_saliency", value).config.saliency is False


def test_a_truth_value_is_only_taken_from_behind_a_switch(command: Command) -> None:
    assert command("--run_name", "True").config.run_name == "True"
    config = command("--set", "model.hidden_dim=True", "--model", "MLP5", "--no_download").config
    assert config.set == {"model": {"hidden_dim": True}} and config.download is False
    result = command("True")
    assert result.code == 2 and "True" in result.err
    result = command("--tuning", "True", "False")
    assert result.code == 2 and "'False'" in result.err


def test_a_switch_that_nothing_needs_says_so(command: Command) -> None:
    for words in (["--pruned"], ["--pruned", "True"]):
        result = command(*words)
        assert result.code == 0
        assert result.notes[0] == "--pruned has no effect: the checkpoint records what was pruned"


def test_a_model_path_of_0_means_none(command: Command) -> None:
    result = command("--model_path", "0")
    assert result.config.checkpoint_name is None and "no effect" in result.notes[0]


def test_a_strangers_pickle_is_refused_as_a_model_path(command: Command) -> None:
    torch.save({"net": {}}, "vgg.pth")
    legacy = Path("legacy.pth")
    torch.save({"net": {}}, legacy, _use_new_zipfile_serialization=False)
    for file in ("vgg.pth", "legacy.pth"):
        result = command("--eval", "--model_path", file)
        assert result.code == 2 and result.err.count("\n") == 1
        assert file in result.err and "pickle" in result.err and "safetensors" in result.err
    Path("text.pth").write_text("hello")
    assert "text.pth is not a safetensors file" in command("--eval", "--model_path", "text.pth").err
    save_file({"a": torch.zeros(1)}, "a.safetensors")
    assert "is not in a run folder" in command("--eval", "--model_path", "a.safetensors").err


def test_a_model_path_and_a_checkpoint_name_that_contradict_each_other_are_refused(command: Command) -> None:
    result = command("--eval", "--model_path", "one", "--checkpoint_name", "other")
    assert result.code == 2 and "--model_path and --checkpoint_name contradict" in result.err


def test_input_dim_is_the_size_of_the_inputs(command: Command) -> None:
    assert command("--input_dim", "1,32,32").config.image_size == 32
    for wrong in ("28,28", "1,28,32", "1,x,28"):
        assert command("--input_dim", wrong).code == 2
