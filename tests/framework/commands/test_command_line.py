"""The command line: what reaches a run, what is refused, and with which exit code."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import secateur
from secateur.framework.settings.run_config import FLAGS
from secateur.utils.errors import RunError, UsageError
from tests import ROOT

Command = Callable[..., Any]


def test_defaults_reach_the_run_without_any_flag(command: Command) -> None:
    result = command()
    assert result.code == 0
    assert (result.config.model, result.config.prune_criterion, result.config.batch_size) == (
        "LeNet5",
        "SNAPit",
        128,
    )
    assert result.decisions.given == set()


def test_flags_reach_the_run_with_their_types(command: Command) -> None:
    result = command(
        "--model",
        "VGG16",
        "--epochs",
        "3",
        "--learning_rate",
        "1e-3",
        "--no_download",
        "--tuning",
        "--lr_schedule",
        "multistep",
        "--lr_milestones",
        "5,8",
        "--protect",
        "features.0",
        "--protect",
        "fc",
    )
    config = result.config
    assert (config.model, config.epochs, config.learning_rate) == ("VGG16", 3, 1e-3)
    assert (config.download, config.tuning) == (False, True)
    assert config.lr_milestones == (5, 8)
    assert config.protect == ("features.0", "fc")
    assert result.decisions.given == {
        "model",
        "epochs",
        "learning_rate",
        "download",
        "tuning",
        "lr_schedule",
        "lr_milestones",
        "protect",
    }


def test_the_command_line_is_handed_on_quoted_for_a_shell(command: Command) -> None:
    result = command("--run_name", "two words")
    assert result.command == "python main.py --run_name 'two words'"


#: switches that are refused, one way or the other, without further flags
NEED_MORE = ("eval", "outer_layer_pruning", "masking", "new_head", *(n for n, flag in FLAGS.items() if flag.tests))


@pytest.mark.slow
def test_every_truth_value_can_be_switched_both_ways(command: Command) -> None:
    for name, flag in FLAGS.items():
        if flag.type is bool and name not in NEED_MORE:
            others = (
                ("--prune_criterion", "LossBased") if name in ("use_l2", "use_init", "track_importance") else ()
            )
            assert getattr(command(f"--{name}", *others).config, name) is True
            assert getattr(command(f"--no_{name}", *others).config, name) is False


def test_every_flag_is_in_the_help_under_its_heading(command: Command) -> None:
    text = command("--help").out
    for name, flag in FLAGS.items():
        assert re.search(rf"--{name}[ ,]", text)
        assert f"{flag.group}:" in text
        assert len(flag.help) > 3


def test_version_is_that_of_the_package(command: Command) -> None:
    assert secateur.__version__ in command("--version").out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "secateur.__version__"}


REFUSED = {
    "unknown model": (["--model", "VG16"], "'VGG16'"),
    "unknown criterion": (["--prune_criterion", "SNAPt"], "'SNAPit'"),
    "unknown data set": (["--data_set", "FASHIO"], "'FASHION'"),
    "unknown optimizer": (["--optimizer", "SDG"], "'SGD'"),
    "unknown loss": (["--loss", "CrosEntropy"], "'CrossEntropy'"),
    "unknown flag": (["--modle", "VGG16"], "'--model'"),
    "unknown negated flag": (["--no_autoconfg"], "'--no_autoconfig'"),
    "unknown command": (["lst"], "'list'"),
    "unknown choice": (["--schedule", "befor"], "'before'"),
    "flag without its value": (["--epochs"], "--epochs"),
    "sparsity above one": (["--pruning_limit", "1.2"], "[0, 1), got 1.2"),
    "sparsity of one": (["--pruning_limit", "1"], "[0, 1), got 1"),
    "negative sparsity": (["--pruning_limit", "-0.1"], "[0, 1), got -0.1"),
    "sparsity that is no number": (["--pruning_limit", "nan"], "got nan"),
    "text for a number": (["--epochs", "ten"], "--epochs must be an integer, got 'ten'"),
    "half an epoch": (["--epochs", "1.5"], "must be an integer"),
    "negative epochs": (["--epochs", "-1"], "at least 0, got -1"),
    "empty batches": (["--batch_size", "0"], "at least 1"),
    "validation share of one": (["--val_share", "1"], "[0, 1)"),
    "no classes": (["--num_classes", "0"], "at least 1"),
    "no training batches": (["--limit_train_batches", "0"], "at least 1"),
    "negative learning rate": (["--learning_rate", "-1"], "at least 0"),
    "infinite gradient clip": (["--grad_clip", "inf"], "a finite number"),
    "seed too large": (["--seed", str(2**32)], "in [0, 4294967295]"),
    "multistep without milestones": (["--lr_schedule", "multistep"], "--lr_milestones"),
    "milestone that is no number": (["--lr_milestones", "30,x"], "got 'x'"),
    "two modes": (["--hoyer_square", "--group_hoyer_square"], "--hoyer_square and --group_hoyer_square exclude"),
    "weights that grow again": (["--growing_rate", "0.1"], "--growing_rate 0.1"),
    "rate that is no number": (["--growing_rate", "nan"], "--growing_rate nan: regrowth is not supported"),
    "rate above one": (["--pruning_rate", "1.5"], "--pruning_rate must be in [0, 1), got 1.5"),
    "unknown group of an unread option": (["--set", "critrion.p=3"], "unknown group of --set 'critrion'"),
    "channel criterion and rows": (["--prune_criterion", "SNAP", "--scope", "row", "--explain"], "--scope 'row'"),
    "images from nowhere": (["--data_set", "IMAGEFOLDER"], "--data_dir"),
    "unknown device": (["--device", "gpu"], "cuda:N"),
    "hidden_dim of a network without": (["--hidden_dim", "3"], "LeNet5"),
    "option of a plug-in without": (["--set", "model.depth=3"], "model.depth: LeNet5 has no options"),
    "unknown option": (["--model", "MLP5", "--set", "model.hiden_dim=3"], "'hidden_dim'"),
    "unknown group": (["--set", "criterions.p=3"], "'criterion'"),
    "setting without a group": (["--set", "p=3"], "GROUP.KEY=VALUE"),
    "setting that is no YAML": (["--set", "criterion.p=[1"], "criterion.p"),
    "option that has a flag": (["--set", "optimizer.lr=0.1"], "use --learning_rate"),
    "option of the framework": (["--set", "model.in_channels=3"], "it is set by the run"),
    "missing plug-ins": (["--plugins", "nowhere"], "nowhere"),
    "missing config file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "missing pretrained file": (["--pretrained", "nowhere.safetensors"], "nowhere.safetensors"),
    "missing run folder": (["--checkpoint_name", "nowhere"], "results/nowhere"),
    "nothing to evaluate": (["--eval"], "LeNet5_finished.safetensors"),
    "checkpoint without a run": (["--checkpoint_model", "LeNet5_best"], "--checkpoint_name"),
    "extra numbers of a training run": (["--train_acc"], "--train_acc needs --eval"),
    "a file that is not there": (["--eval", "--model_path", "a/b.pth"], "--model_path a/b.pth: no such file"),
    "number after a flag that may stand alone": (["--limit_training_batches", "-2"], "at least 1, got -2"),
    "another program's flag": (["--lr", "abc"], "error: --lr must be a number, got 'abc'"),
    "limit of another program's flag": (["--lr", "-1"], "error: --lr must be at least 0, got -1"),
    "other spelling": (["--output_dim", "abc"], "error: --output_dim must be an integer, got 'abc'"),
    "limit of another spelling": (["--rewind_epoch", "-1"], "error: --rewind_epoch must be at least 0"),
    "half of another program's flag": (["--lr_decay_every", "0"], "error: --lr_decay_every must be at least 1"),
    "network of another model": (
        ["--arch", "x"],
        "--arch: the model LeNet5 has no such option: network of torchvision, for --model TorchvisionModel\n",
    ),
    "unknown kind": (["list", "criterio"], "'criterions'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(command: Command, case: str) -> None:
    arguments, expected = REFUSED[case]
    result = command(*arguments)
    assert result.code == 2
    assert result.config is None and result.out == ""
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert expected in result.err
    assert list(Path.cwd().iterdir()) == []


def test_a_negative_number_is_the_value_of_a_flag_that_may_stand_alone(command: Command) -> None:
    result = command("--limit_training_batches", "-1", "--zero_lr_for_epochs", "-1", "--bypass", "--epochs", "2")
    assert result.code == 0, result.err
    assert result.config.limit_train_batches is None and result.config.epochs == 2
    assert not result.config.autoconfig, "a flag that stands alone before another one"


@pytest.mark.parametrize(
    ("text", "shown"), [("abc", "{file}: lr must be a number"), ("-1", "--lr must be at least")]
)
def test_the_key_of_another_program_is_named_as_it_stands_in_the_file(
    command: Command, tmp_path: Path, text: str, shown: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"lr: {text}\n")
    assert shown.format(file=file) in command("--config", file).err
    assert "error: --learning_rate must" in command("--config", file, "--learning_rate", text).err


SCHEDULES = {
    "--n_rounds 3": "--n_rounds",
    "--n_rounds 2 --thresholds 0.2,0.4": "--n_rounds and --thresholds",
    "--pruning_step 3": "--pruning_step",
    "--schedule rounds --n_rounds 3": "--schedule rounds",
    "--pruning_config taylor.json": "what chose --schedule iterative (from taylor.json)",
}


@pytest.mark.parametrize("line", SCHEDULES)
def test_a_trainer_that_determines_the_schedule_names_what_the_user_gave(command: Command, line: str) -> None:
    Path("taylor.json").write_text('{"frequency": 5, "method": 22}')
    result = command("--train_scheme", "TickTock", *line.split(), "--explain")
    assert result.code == 2
    assert result.err == f"error: TickTock determines the schedule: remove {SCHEDULES[line]}\n"


def test_a_line_break_in_the_input_stays_in_the_line(command: Command) -> None:
    result = command("--config", "a\nb\x1b[31m.yaml")
    assert result.code == 2 and result.err.count("\n") == 1 and "\x1b" not in result.err


def test_cuda_is_refused_where_there_is_none(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = command("--device", "cuda")
    assert result.code == 2 and "no CUDA device" in result.err and result.err.count("\n") == 1


def test_a_cuda_index_beyond_the_last_device_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert command("--device", "cuda:1").code == 0
    assert "the last is cuda:1" in command("--device", "cuda:2").err


def test_a_results_dir_that_is_a_file_is_refused(command: Command) -> None:
    Path("taken").write_text("")
    assert "taken is a file" in command("--results_dir", "taken").err
    assert "taken is a file" in command("--results_dir", "taken/below").err


def test_a_pretrained_pickle_is_refused(command: Command) -> None:
    Path("weights.pth").write_bytes(b"\x80\x02pickle")
    result = command("--pretrained", "weights.pth")
    assert result.code == 2 and "neither a safetensors file nor" in result.err


def test_the_limits_of_a_range_are_inside_where_they_should_be(command: Command) -> None:
    assert command("--pruning_limit", "0", "--epochs", "0", "--label_smoothing", "1").code == 0
    assert command("--grad_clip", "-1", "--max_training_minutes", "-1").code == 0


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UsageError("bad"), 2, "error: bad\n"),
        (RunError("loss is nan\nat step 3"), 1, "error: loss is nan at step 3\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops\n"),
        (EOFError("short file"), 1, "EOFError: short file\n"),
    ],
)
def test_how_a_run_ends_decides_the_exit_code(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, shown: str
) -> None:
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["secateur.framework.commands.run"], "run", run)
    result = command()
    assert result.code == code
    assert result.err.endswith(shown)
    assert ("Traceback" in result.err) == (code == 1 and not isinstance(error, RunError))


def test_plugins_of_a_folder_run_by_name(command: Command, plugins: Path) -> None:
    result = command("--plugins", plugins, "--prune_criterion", "ByWeight", "--set", "criterion.power=2")
    assert result.code == 0
    assert result.config.options("criterion") == {"power": 2}


def test_a_plugin_without_its_class_is_refused_by_its_file(command: Command, plugins: Path) -> None:
    (plugins / "criterions" / "Lost.py").write_text("class Found:\n    pass\n")
    result = command("--plugins", plugins)
    assert result.code == 2 and "Lost.py" in result.err and "Found" in result.err


def test_hidden_dim_is_short_for_the_option_of_the_model(command: Command, plugins: Path) -> None:
    base = ("--plugins", plugins, "--model", "WideNet")
    assert command(*base, "--hidden_dim", "16").config.options("model") == {"hidden_dim": 16}
    clash = command(*base, "--hidden_dim", "16", "--set", "model.hidden_dim=8")
    assert clash.code == 2 and "contradict" in clash.err


def isolated(code: str) -> str:
    """Run Python in a process of its own, with the project on the path; return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "criterions"], ["--model", "VG16"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; from secateur import main; main.main({arguments})"
    code += "; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert isolated(code).splitlines()[-1] == "[]"


def test_the_exit_code_reaches_the_shell() -> None:
    done = subprocess.run([sys.executable, "main.py", "--model", "VG16"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
