"""People who come from another system: their commands run, their flags are known."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import main as command_line
from framework.config import FLAGS
from framework.measures import measure_latency
from framework.plugins import build
from main import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
SECTIONS = {title: text for title, text in re.findall(r"^## From (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)}
COMMANDS = {
    name.strip(): command
    for name, command in re.findall(r"^\| (.*?) \| `(python main.py .*?)` \|$", SECTIONS["SNIP-it"], re.M)
}
#: every flag of SNIP-it
THERE = shlex.split("""
    eval_freq save_freq batch_size seed max_training_minutes plot_weights_freq prune_freq
    prune_delay epochs rewind_to rewind_epoch hidden_dim input_dim output_dim N snip_steps
    pruning_rate growing_rate pruning_limit learning_rate grad_clip grad_noise l2_reg l1_reg lp_reg
    l0_reg hoyer_reg beta_ema loss optimizer model data_set prune_criterion train_scheme test_scheme
    attack device run_name checkpoint_name checkpoint_model eval tuning preload_all_data
    track_weights random_shuffle_labels enable_rewinding outer_layer_pruning l0 hoyer_square
    group_hoyer_square disable_cuda_benchmark disable_autoconfig disable_masking disable_histograms
    disable_saliency disable_confusion skip_first_plot disable_weightplot disable_netplot
""")
#: a command on less; the last of two equal flags wins
SHORT = shlex.split("""
    --data_set FASHION_MINI --epochs 2 --limit_train_batches 1 --limit_test_batches 1 --batch_size 8 --threads 1
    --image_size 32
""")
#: pictures take longer than the rest
LITTLE = ["--plot_weights_freq", "0"]
#: when epochs are two, pruning comes after the first of them
SOON = {"--prune_delay": ["--prune_delay", "0", "--prune_freq", "1"], "--rewind_to": ["--rewind_to", "0"]}


def accepted() -> set[str]:
    return {name.lstrip("-") for option in command_line.cli.params for name in option.opts}


def test_no_flag_is_absent_from_the_page_or_the_command_line() -> None:
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \| (.*?) \|$", SECTIONS["SNIP-it"], re.M)
    listed = [name for flags, _, _ in rows for name in re.findall(r"`--(\w+)", flags)]
    assert sorted(listed) == sorted(THERE)
    assert set(THERE) <= accepted()
    for flags, here, _ in rows:
        for name in re.findall(r"`--(?:no_)?(\w+)", flags if here == "same" else here):
            assert name in FLAGS or name == "rewind_epoch", name


def test_all_kinds_of_commands_were_found() -> None:
    assert len(COMMANDS) == 20


def trained(model: str, results: Path) -> Path:
    """A run folder with a finished network."""
    words = ["--model", model, "--prune_criterion", "EmptyCrit", "--run_name", "MY_RUN", *SHORT]
    assert main([*words, "--epochs", "1", "--results_dir", str(results), *LITTLE]) == 0
    return next(results.iterdir())


def run(command: str, model: str | None, place: Path, patch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """Run a command on less data, with a smaller network if one is named; its exit code and words."""
    patch.setattr("framework.report.measure_latency", partial(measure_latency, repeats=1, warmup=0))
    patch.setattr("framework.probing.REPEATS", 1)
    words = shlex.split(command)[2:]
    if model is not None:
        words = [word.replace("VGG16", model) for word in words] + ["--model", model]
    if "MY_RUN" in words:
        of = words[words.index("--model") + 1]
        words[words.index("MY_RUN")] = str(trained(model or of, place / "first"))
    words += SHORT
    for flag, instead in SOON.items():
        words += instead if flag in words else []
    if "--attack" in words:
        words += ["--attack_samples", "10", "--attack_steps", "2"]
    return main([*words, "--results_dir", str(place / "results"), *LITTLE]), words


def check(command: str, model: str | None, place: Path, patch: pytest.MonkeyPatch, capsys: Any) -> None:
    code, words = run(command, model, place, patch)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    report = json.loads((Path(shown.out.strip().splitlines()[-1]) / "report.json").read_text(encoding="utf-8"))
    if "--eval" in words:
        assert "CarliniWagner" in json.dumps(report)
    elif "EmptyCrit" not in words and "--l0" not in words:
        pruned = report["reached"]["weight_sparsity"] > 0
        told = [one for one in report["warnings"] if "nothing was pruned" in one and "threshold" in one]
        assert pruned != bool(told)
        assert pruned or "hoyer" in command  # a step or two of training leave no group below the threshold


def test_the_commands_give_each_hoyer_loss_a_weight_of_its_size() -> None:
    for mode, default in (("hoyer_square", "HoyerSquare"), ("group_hoyer_square", "GroupHoyerSquare")):
        words = next(shlex.split(one) for one in COMMANDS.values() if f" --{mode} " in one)
        given = [float(words[at + 1]) for at, word in enumerate(words) if word == "--hoyer_reg"]
        assert set(given) <= {build("losses", default).hoyer_reg}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_runs_with_a_small_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(COMMANDS[name], "LeNet5", tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_runs_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(COMMANDS[name], None, tmp_path, monkeypatch, capsys)
