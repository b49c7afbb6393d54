"""Commands of other systems run, and their flags are accepted."""

import json
import re
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from secateur import main as command_line
from secateur.framework.plugins.registry import build
from secateur.framework.settings.dialects.discovery import OTHER_PROGRAMS
from secateur.framework.settings.run_config import FLAGS
from secateur.main import main
from tests import ROOT

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
            assert name in FLAGS | OTHER_PROGRAMS or name == "rewind_epoch", name


def test_all_kinds_of_commands_were_found() -> None:
    assert len(COMMANDS) == 20


def trained(model: str, results: Path) -> Path:
    """A run folder with a finished network."""
    words = ["--model", model, "--prune_criterion", "EmptyCrit", "--run_name", "MY_RUN", *SHORT]
    assert main([*words, "--epochs", "1", "--results_dir", str(results), *LITTLE]) == 0
    return next(results.iterdir())


def run(command: str, model: str | None, place: Path, patch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """Run a command on less data, with a smaller network if one is named; its exit code and words."""
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


#: what the others differ in is a criterion, each of which prunes a run by itself in the slow tests
FAST = (
    "dense network", "SNAPit, channels before training", "SNIPit during training", "CNIPit, weights and channels",
    "magnitudes with rewinding", "random weights", "Hoyer-square", "gate decorators, from a trained network", "L0",
    "attack",
)  # fmt: skip


def fast(names: Iterable[str], chosen: Collection[str]) -> list[Any]:
    assert set(chosen) <= set(names)
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", fast(COMMANDS, FAST))
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


#: every flag of the training script of Taylor pruning
TAYLOR = shlex.split("""
    batch-size test-batch-size epochs lr wd momentum lr-decay-every lr-decay-scalar seed log-interval no-cuda
    run_test limit_training_batches no_grad_clip get_flops get_inference_time mgpu world_size dataset data model
    tensorboard
    save_models zero_lr_for_epochs fixed_network use_test_as_train dynamic_network group_wd_coeff name augment
    load_model pruning pruning_config pruning-method pruning-momentum pruning-threshold pt pruning-step
    prune_per_iteration fixed_layer starting_neuron prune_neurons_max start_pruning_after_n_iterations
    maximum_pruning_iterations pruning_fixed_criteria pruning_mask_from compute_flops
""")
#: every flag of the three scripts of pruning by gradient flow
GRADIENT_FLOW = shlex.split("""
    model seed pretrained_path data_path download pruning_type prune_percent n_rounds T imp_samples num_classes
    moment warmup_epochs thresholds lr_prune preserve_moment track_importance track_batches alpha use_init use_l2
    track_stats bypass grasp_T model_path pruned train_acc test_acc flops compression
""")
SYSTEMS = {"Taylor pruning": TAYLOR, "pruning by gradient flow": GRADIENT_FLOW}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_flag_of_the_other_systems_is_on_the_page_and_accepted(system: str) -> None:
    table = SECTIONS[system].split("### Flags")[1]
    listed = {
        name for row in re.findall(r"^\| (`--.*?) \|", table, re.M) for name in re.findall(r"`--([\w-]+)", row)
    }
    assert listed == set(SYSTEMS[system])
    assert {name.replace("-", "_") for name in listed} <= accepted()
    for row in re.findall(r"^\| `--.*? \| (.*?) \|", table, re.M):
        assert set(re.findall(r"`--(?:no_)?(\w+)", row)) <= set(FLAGS | OTHER_PROGRAMS), row


OTHERS = {
    f"{system}: {name}": command
    for system in SYSTEMS
    for name, command in re.findall(r"^\| (.*?) \| `(python main.py .*?)` \|$", SECTIONS[system], re.M)
}
#: words of the page -> those for a short run on images that are here
LESS = {
    r"--(dataset|data_path) \w+": r"--\1 FASHION_MINI",
    r"--data(_dir)? DIR": "",
    r"--model[= ](resnet50|resnet-56|vgg|mobilenet|VGG13)": "--model LeNet5",
    r"--config configs/\w+.json": "--config small.json",
    r"--(load_model|pretrained) FILE": "",
    r"--imp_samples \d+": "--imp_samples 100",
    r"--n_rounds[= ]\d+": "--n_rounds 1",
    r"--pruning-step \d+": "--pruning-step 1",
    r"--batch-size 256": "",
}


def test_all_commands_of_the_other_systems_were_found() -> None:
    assert len(OTHERS) == 13


OTHERS_FAST = (
    "Taylor pruning: prune a ResNet-50, as published",
    "Taylor pruning: how well the scores estimate the importance",
    "pruning by gradient flow: tracked, biased to large weights",
    "pruning by gradient flow: magnitudes in 25 rounds, as published",
    "pruning by gradient flow: evaluate",
)


@pytest.mark.parametrize("name", fast(OTHERS, OTHERS_FAST))
def test_a_command_of_another_system_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = OTHERS[name]
    if "MY_RUN" in command:
        command = command.replace("MY_RUN", str(trained("LeNet5", tmp_path / "first")))
    for words, instead in LESS.items():
        command = re.sub(words, instead, command)
    recipe = json.loads((ROOT / "configs" / "resnet50_72.json").read_text(encoding="utf-8"))
    little = {"model": "LeNet5", "data_set": "FASHION_MINI", "maximum_pruning_iterations": 2, "frequency": 1}
    recipe = {key: value for key, value in recipe.items() if key not in ("arch", "protect")} | little
    (tmp_path / "small.json").write_text(json.dumps(recipe), encoding="utf-8")
    settings = {"method": 22, "frequency": 1, "prune_per_iteration": 5, "maximum_pruning_iterations": 2}
    settings |= {"pruning_threshold": 100.0, "prune_neurons_max": 10, "use_momentum": True}
    (tmp_path / "theirs.json").write_text(json.dumps(settings), encoding="utf-8")
    words = shlex.split(command.replace("JSON", "theirs.json"))[2:]
    if "oracle" in words:
        words += ["--samples", "40", "--criterions", "TaylorGate,WeightNorm"]
    else:
        words += [*SHORT, *LITTLE, "--limit_train_batches", "4", "--results_dir", "results"]
    if "--thresholds" in words:  # three rounds, two epochs of warm-up, one to tune
        words += ["--epochs", "6"]
    assert main(words) == 0, capsys.readouterr().err
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert (folder / ("oracle.json" if "oracle" in words else "report.json")).is_file()
    if "--eval" in words or "oracle" in words or "EmptyCrit" in words or "False" in words:
        return
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["reached"]["node_sparsity"] > 0
