"""`--explain` prints every setting, who chose it and why, and neither runs nor writes anything."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur import build, save_model
from secateur.framework.settings.oracle_config import StudyConfig
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.run_folder import RunFolder
from tests.command_line import refused

Command = Callable[..., Any]
USER = "command line"


@pytest.fixture
def explain(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, tuple[str, ...]]]:
    """Call `main.py --explain` beside a checkpoint; return value, source and reason of every setting."""
    folder = RunFolder(Path("results/trained"))
    folder.make_places()
    model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    save_model(model, folder.checkpoint("LeNet5"))
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: str) -> dict[str, tuple[str, ...]]:
        before = sorted(Path.cwd().rglob("*"))
        result = command(*arguments, "--explain")
        assert (result.code, result.err, result.config) == (0, "", None)
        assert sorted(Path.cwd().rglob("*")) == before
        rows = [line.strip("│").split("│") for line in result.out.splitlines() if line.startswith("│")]
        return {name.strip(): tuple(cell.strip() for cell in cells) for name, *cells in rows}

    return call


CASES: dict[str, tuple[str, dict[str, tuple[str, str, str]]]] = {
    "a plain run": ("--epochs 3", {
        "epochs": ("3", USER, ""), "schedule": ('"before"', "default", "of SNAPit"),
        "seed": ("333", "default", "of the flag"), "device": ('"cpu"', USER, ""),
    }),
    "flags of another program": ("--pruning_method 22 --name a --lr 0.1", {
        "prune_criterion": ('"TaylorGate"', USER, ""), "run_name": ('"a"', USER, ""),
        "optimizer": ('"SGD"', "dialect", "as in the original script of these flags"),
    }),
    "an evaluation": ("--eval --test_acc", {
        "eval": ("true", USER, ""), "test_acc": ("true", USER, ""),
        "checkpoint_model": ('"LeNet5_finished"', "default", "by the settings of the run"),
    }),
    "trained gates": ("--l0 --l0_reg 0.2", {
        "train_scheme": ('"L0Trainer"', "preset", "--l0"), "l0_reg": ("0.2", USER, ""),
        "loss": ('"L0CrossEntropy"', "preset", "--l0"),
    }),
    "a trainer by a flag": ("--train_scheme TickTock --prune_criterion SNAP", {
        "train_scheme": ('"TickTock"', USER, ""),
    }),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_setting_is_in_the_table_and_nothing_runs(explain: Any, case: str) -> None:
    line, expected = CASES[case]
    rows = explain(*line.split(), "--device", "cpu")
    assert rows.keys() == RunConfig().to_dict().keys()
    assert {name: rows[name] for name in expected} == expected
    order = [source for source, _ in itertools.groupby(source == USER for _, source, _ in rows.values())]
    assert order == [True, False], "the user's settings are first"


@pytest.mark.parametrize("before", [True, False])
def test_a_study_has_the_settings_of_its_own_in_the_table(explain: Any, before: bool) -> None:
    own = ("--samples", "20", "--criterions", "SNAP")
    rows = explain("--batch_size", "9", "oracle", *own) if before else explain("oracle", *own, "--batch_size", "9")
    assert rows.keys() == StudyConfig().to_dict().keys()
    assert rows["samples"] == ("20", USER, "") and rows["criterions"] == ('["SNAP"]', USER, "")
    assert rows["batch_size"] == ("9", USER, "") and rows["eval"] == ("true", "default", "of the flag")


@pytest.mark.parametrize(
    ("line", "remark"),
    [
        ("--momentum 0.5", "--momentum has no effect: it is for --optimizer SGD"),
        ("--eval --epochs 3", "--epochs has no effect: --eval only tests a checkpoint"),
    ],
)
def test_remarks_follow_the_table(explain: Any, command: Command, line: str, remark: str) -> None:
    result = command(*line.split(), "--explain")
    assert result.out.splitlines()[-1] == remark, result.err


REFUSED = {
    "an option of the optimizer": ("--set optimizer.betas=3", "--set optimizer.betas=3"),
    "a trainer that determines the schedule": ("--train_scheme TickTock --schedule rounds", "--schedule rounds"),
    "another number of classes": ("--num_classes 7", "7: FASHION_MINI has 10 classes"),
    "a layer that does not exist": ("--prune_criterion SNAP --protect feature", "'feature'"),
    "an image that is too small": ("--model AlexNet --image_size 2", "image_size must be at least 7, got 2"),
    "an unknown option of the tester": ("--eval --set tester.a=1", "tester.a"),
    "a checkpoint of another network": ("--eval --model VGG16 --checkpoint_model LeNet5_finished", "LeNet5"),
    "too few samples of a study": ("oracle --samples 9", "9 scoring samples"),
    "an option of a criterion in a study": ("oracle --set criterion.p=1", "an oracle study uses every criterion"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_run_refuses_before_it_trains_is_refused(explain: Any, command: Command, case: str) -> None:
    line, words = REFUSED[case]
    refused(command(*line.split(), "--explain"), words)


def test_nothing_is_downloaded(explain: Any, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.utils.loading.dataset.SearchedDataSet.root", lambda *_: None)
    rows = explain("--data_set", "CIFAR10")
    assert rows["num_classes"][:2] == ("null", "default")
    note = "CIFAR10 is not here: what depends on its images is not checked"
    assert command("--data_set", "CIFAR10", "--explain").out.splitlines()[-1] == note
    refused(command("--data_set", "CIFAR10", "--set", "optimizer.betas=3", "--explain"), "optimizer.betas")
