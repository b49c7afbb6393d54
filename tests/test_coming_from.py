"""People who come from another system: their commands run, their flags are known."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import main as command_line
from framework.config import FLAGS
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a finished VGG16 on made-little data."""
    results = tmp_path_factory.mktemp("results")
    words = ["--model", "VGG16", "--prune_criterion", "EmptyCrit", "--run_name", "MY_RUN", *SHORT]
    assert main([*words, "--epochs", "1", "--results_dir", str(results), *LITTLE]) == 0
    return next(results.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_runs_and_reports(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(COMMANDS[name])[2:]
    if "MY_RUN" in words:
        words[words.index("MY_RUN")] = str(trained)
    words += SHORT
    for flag, instead in SOON.items():
        words += instead if flag in words else []
    if "--attack" in words:
        words += ["--attack_samples", "10", "--attack_steps", "2"]
    assert main([*words, "--results_dir", str(tmp_path), *LITTLE]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report
    if "--eval" not in words and "EmptyCrit" not in words and "--l0" not in words:
        assert report["sparsity"]["reached"] > 0
