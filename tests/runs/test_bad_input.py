"""Bad input is one line, exit code 2 and nothing written; a run that fails later keeps its last good network."""

import errno
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from secateur.framework.plugins.registry import build, registry
from secateur.framework.storage.checkpoint import load_model
from secateur.framework.storage.run_folder import RunFolder
from secateur.utils.files import atomic
from tests.command_line import Run, run_main

SMALL = (
    "--model LeNet300 --epochs 2 --batch_size 16 --limit_train_batches 2 --limit_test_batches 1 "
    "--threads 1 --plot_weights_freq 0"
)


Launch = Callable[..., Run]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launch:
    """Call main.py in an empty folder, on very little data."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *arguments: run_main(Path.cwd(), *SMALL.split(), *arguments)


def plugin(tmp_path: Path, kind: str, name: str, text: str) -> Path:
    """Write a plug-in outside the folder the command runs in; returns its plug-ins folder."""
    file = tmp_path / "mine" / kind / f"{name}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return tmp_path / "mine"


def refused(result: Run, *expected: str) -> None:
    """Exit code 2, one line with all of `expected`, and an empty folder."""
    assert result.code == 2, result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and result.err.endswith("\n")
    for part in expected:
        assert part in result.err
    assert "Traceback" not in result.err
    assert list(Path.cwd().iterdir()) == []


BAD: dict[str, tuple[str, list[str]]] = {
    "unknown model": ("--model VG16", ["'VG16'", "did you mean 'VGG16'?"]),
    "unknown criterion": ("--prune_criterion snapp", ["'snapp'", "did you mean 'SNAP'?"]),
    "unknown data set": ("--data_set CIFAR11", ["did you mean 'CIFAR10'?"]),
    "unknown trainer": ("--train_scheme DefaltTrainer", ["did you mean 'DefaultTrainer'?"]),
    "unknown tester": ("--test_scheme Acuracy", ["did you mean 'Accuracy'?"]),
    "unknown optimizer": ("--optimizer ADMA", ["did you mean 'ADAM'?"]),
    "unknown loss": ("--loss CrossEntrpy", ["did you mean 'CrossEntropy'?"]),
    "unknown flag": ("--prunning_limit 0.5", ["did you mean '--pruning_limit'?"]),
    "sparsity above one": ("--pruning_limit 1.2", ["--pruning_limit", "[0, 1)", "1.2"]),
    "negative sparsity": ("--pruning_limit -0.1", ["--pruning_limit", "[0, 1)", "-0.1"]),
    "sparsity in words": ("--pruning_limit abc", ["--pruning_limit", "'abc'"]),
    "missing checkpoint": ("--checkpoint_name nowhere", ["nowhere"]),
    "missing checkpoint to test": ("--eval", ["LeNet300_finished.safetensors"]),
    "missing pretrained weights": ("--pretrained nowhere.safetensors", ["nowhere.safetensors"]),
    "no channel": ("--model LogisticRegression --prune_criterion SNAP", ["LogisticRegression has no channel to"]),
    "protection of nothing": ("--protect conv9", ["'conv9'", "features.1"]),
    "everything protected": ("--protect features --protect classifier", ["no channel", "protected by name"]),
    "no time to prune": ("--prune_criterion SNAPitDuring --prune_delay 5", ["epochs is 2", "prune_delay 5"]),
    "no epoch to prune in": ("--prune_criterion SNIPitDuring --epochs 0", ["epochs is 0"]),
    "after the end": ("--prune_criterion Magnitude --prune_delay 7", ["epochs is 2"]),
    "image too small": ("--model VGG16 --image_size 8", ["VGG16", "8"]),
    "image too small for LeNet5": ("--model LeNet5 --image_size 4", ["LeNet5", "4"]),
    "wrong number of classes": ("--num_classes 7", ["num_classes 7", "10 classes"]),
    "unknown option": ("--prune_criterion ChannelNorm --set criterion.q=1", ["option of ChannelNorm", "p"]),
    "bad value of an option": ("--prune_criterion ChannelNorm --set criterion.p=3", ["p must be 1 or 2"]),
    "label smoothing of one": ("--label_smoothing 1", ["label_smoothing"]),
    "unknown budget": ("--prune_criterion SNAP --budget flops", ["--budget", "macs"]),
    "budget of weights": ("--prune_criterion SNIP --budget macs", ["--budget 'macs' is for channels"]),
    "isomorphic weights": ("--prune_criterion SNIP --scope isomorphic", ["SNIP: unknown --scope 'isomorphic'"]),
    "rounded weights": ("--prune_criterion SNIP --round_to 8", ["--round_to", "SNIP, which prunes weights"]),
    "heads of weights": ("--prune_criterion SNIP --attention heads", ["--attention", "SNIP, which"]),
    "inexact weights": ("--prune_criterion SNIP --inexact", ["--inexact", "SNIP, which prunes weights"]),
    "kept weights": ("--prune_criterion SNIP --keep_share 0.1", ["--keep_share", "SNIP, which prunes weights"]),
    "rows of channels": ("--prune_criterion SNAP --scope row", ["SNAP: unknown --scope 'row'", "isomorphic"]),
    "weights and channels by layer": ("--prune_criterion CNIP --scope layer", ["--scope 'layer' (one of global)"]),
    "weights and channels by work": ("--prune_criterion CNIPit --budget macs", ["--budget 'macs' is for"]),
    "weights and channels in eights": ("--prune_criterion CNIPit --round_to 8", ["--round_to", "CNIPit, which"]),
    "multiple of nothing": ("--prune_criterion SNAP --round_to 0", ["--round_to", "got 0", "auto"]),
    "multiple in words": ("--prune_criterion SNAP --round_to fast", ["--round_to", "got fast", "auto"]),
    "fewer than no channels": ("--prune_criterion SNAP --min_channels -1", ["--min_channels"]),
    "no fused step": ("--optimizer ADADELTA --fused on", ["ADADELTA", "fused"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(launch: Launch, case: str) -> None:
    arguments, expected = BAD[case]
    refused(launch(*arguments.split()), *expected)


def test_a_device_that_is_not_there(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(launch("--device", "cuda"), "--device cuda", "no CUDA device")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [", "line 1"),
        ("modle: LeNet5", "did you mean 'model'?"),
        ("epochs: many", "epochs must be an integer"),
        ("- a\n- b\n", "key: value"),
        ("set: {criterions: {p: 1}}", "'criterion'"),
    ],
)
def test_a_broken_config_file(launch: Launch, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    refused(launch("--config", tmp_path / "run.yaml"), "run.yaml", expected)


def test_data_that_is_not_there_and_may_not_be_fetched(launch: Launch, tmp_path: Path) -> None:
    refused(
        launch("--data_set", "CIFAR10", "--no_download", "--data_dir", tmp_path / "sets"),
        "CIFAR10 not found", str(tmp_path / "sets"), "--data_dir", "downloading is switched off",
    )  # fmt: skip


def test_data_that_cannot_be_fetched(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    result = launch("--data_set", "CIFAR10", "--data_dir", tmp_path / "sets")
    refused(result, "CIFAR10 not found", "looked in", "download failed", "Name or service not known", "--data_dir")
    assert not (tmp_path / "sets").exists()


def test_what_is_wrong_with_the_pruning_is_known_before_data_is_fetched(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "secateur.framework.commands.assemble.make_loaders", lambda *_, **__: pytest.fail("it went for the data")
    )
    refused(launch("--prune_criterion", "SNAPitDuring", "--prune_delay", "5"), "prune_delay 5")


@pytest.mark.parametrize("text", ["epochs: &a [*a]", "[" * 2000, "epochs: !!int ''", "seed: !!timestamp abc"])
def test_a_hostile_config_file(launch: Launch, tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    refused(launch("--config", tmp_path / "run.yaml"), "run.yaml")


def test_options_that_no_optimizer_steps_with(launch: Launch) -> None:
    refused(launch("--set", "optimizer.differentiable=true"), "--set optimizer.differentiable", "ADAM")


@pytest.mark.slow
def test_damaged_neighbours_do_not_stop_a_run(launch: Launch) -> None:
    for number, text in enumerate(("&a [*a]", "[" * 2000, "- 1", "!!int ''")):
        other = RunFolder(Path("results") / f"2020-01-0{number + 1}_00-00-00_other")
        other.models.mkdir(parents=True)
        save_file({"weight": torch.zeros(2)}, other.checkpoint("LeNet300"))
        other.config.write_text(text)
        os.mkfifo(other.report)
    result = launch("--set", "optimizer.foreach=true")
    assert result.code == 0, result.err
    assert "3 more" in next(line for line in result.out.splitlines() if line.startswith("skipped"))


# Plug-ins

HEAD = """
import torch
from secateur.framework.pruning.scoring.criterion import Criterion, Data
from secateur.framework.network.layers import prunable_weights
from secateur.framework.schedules.base import Before, During


class Mine(Criterion):
    granularity = "weight"

"""
SCORE = "    def score(self, model, batches, loss, groups=None):\n"
RIGHT = "{n: w.detach().abs() for n, w in prunable_weights(model).items()}"
WRONG_SCORES: dict[str, tuple[str, list[str]]] = {
    "a wrong signature": (HEAD + "    def score(self, model, data):\n        return {}\n", ["groups=None"]),
    "a wrong shape": (HEAD + SCORE + f"        return {{n: s[:1] for n, s in {RIGHT}.items()}}\n",
                      ["features.1.weight", "(1, 784)", "(300, 784)"]),
    "one score too few": (HEAD + SCORE + f"        return dict(list({RIGHT}.items())[1:])\n",
                          ["lacks 'features.1.weight'"]),
    "one score too many": (HEAD + SCORE + f"        return {RIGHT} | {{'bias': torch.zeros(1)}}\n", ["'bias'"]),
    "not a number": (HEAD + SCORE + f"        return {{n: s * float('nan') for n, s in {RIGHT}.items()}}\n",
                     ["NaN"]),
    "no mapping": (HEAD + SCORE + "        return None\n", ["NoneType"]),
    "no tensors": (HEAD + SCORE + f"        return {{n: 1.0 for n in {RIGHT}}}\n", ["Mine.score"]),
    "an error of its own": (HEAD + SCORE + "        raise KeyError('lost')\n", ["KeyError", "lost"]),
    "an error of many lines": (HEAD + SCORE + "        raise ValueError('one\\ntwo\\n' + 'x' * 9)\n", ["one two"]),
    "an error at its import": ("import nothing_like_this\n" + HEAD + SCORE + f"        return {RIGHT}\n",
                               ["nothing_like_this"]),
    "a class of another name": (HEAD.replace("Mine", "Other") + SCORE + "        return {}\n", ["Mine", "Other"]),
    "no Python": ("class Mine(\n", ["not valid Python"]),
    "no criterion": ("class Mine:\n" + SCORE + "        return {}\n", ["secateur.Criterion"]),
    "no score": (HEAD + "    pass\n", ["lacks score"]),
    "an unknown granularity": (HEAD.replace('"weight"', '"wieght"') + SCORE + "        return {}\n", ["'wieght'"]),
    "no granularity": (HEAD.replace('granularity = "weight"', "") + SCORE + "        return {}\n",
                       ["granularity"]),
    "no schedule": (HEAD + '    schedule = "before"\n' + SCORE + f"        return {RIGHT}\n",
                    ["schedule", "got 'before'"]),
    "data of each class at random": (HEAD + '    data = Data("random", per_class=1)\n' + SCORE
                                     + f"        return {RIGHT}\n", ["per_class for balanced data"]),
    "data nobody has": (HEAD + '    data = Data("radnom", batches=1)\n' + SCORE + f"        return {RIGHT}\n",
                        ["'radnom'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_SCORES)
def test_a_criterion_that_breaks_the_contract_is_refused_by_its_file(
    launch: Launch, tmp_path: Path, case: str
) -> None:
    text, expected = WRONG_SCORES[case]
    folder = plugin(tmp_path, "criterions", "Mine", text)
    by_class = {"an unknown granularity", "no granularity", "no schedule"}
    named = "Mine" if case in by_class else str(folder / "criterions" / "Mine.py")
    refused(launch("--plugins", folder, "--prune_criterion", "Mine"), named, *expected)


def test_the_trial_is_not_what_the_run_remembers(launch: Launch, tmp_path: Path) -> None:
    text = HEAD + (
        "    def __init__(self):\n        super().__init__()\n        self.calls = []\n\n"
        "    def start(self, model):\n        self.calls.append('start')\n\n"
        + SCORE
        + "        assert self.calls == ['start'], self.calls\n        self.calls.append('score')\n"
        f"        return {RIGHT}\n"
    )
    folder = plugin(tmp_path, "criterions", "Mine", text)
    assert launch("--plugins", folder, "--prune_criterion", "Mine").code == 0


def test_a_class_that_is_missing_stops_every_run_with_that_folder(launch: Launch, tmp_path: Path) -> None:
    folder = plugin(tmp_path, "criterions", "Mine", "class Yours:\n    pass\n")
    refused(launch("--plugins", folder, "--prune_criterion", "SNAP"), "Mine.py", "Yours")


def test_a_name_that_is_taken(launch: Launch, tmp_path: Path) -> None:
    folder = plugin(tmp_path, "criterions", "SNIP", "class SNIP:\n    pass\n")
    refused(launch("--plugins", folder), "SNIP.py", "taken")


@pytest.mark.parametrize(
    ("kind", "flag", "text", "expected"),
    [
        ("losses", "--loss", "class Mine:\n    pass\n", "secateur.Loss"),
        ("trainers", "--train_scheme", "class Mine:\n    pass\n", "secateur.Trainer"),
        ("utils/data", "--data_set", "class Mine:\n    pass\n", "secateur.DataSet"),
        ("models", "--model", "class Mine:\n    pass\n", "must be a subclass of torch.nn"),
        ("models", "--model", "from torch.nn import Module\nclass Mine(Module):\n    pass\n", "in_channels"),
    ],
)  # fmt: skip
def test_other_plugins_that_break_their_contract(
    launch: Launch, tmp_path: Path, kind: str, flag: str, text: str, expected: str
) -> None:
    folder = plugin(tmp_path, kind, "Mine", text)
    refused(launch("--plugins", folder, flag, "Mine"), "Mine", expected)


# Checkpoints of something else


def finished(result: Run) -> RunFolder:
    assert result.code == 0, result.err
    return RunFolder(Path.cwd() / result.out.splitlines()[-1])


def told(result: Run, *expected: str) -> None:
    """Exit code 2 and one line; there may be older runs."""
    assert result.code == 2 and result.err.count("\n") == 1 and result.err.startswith("error: ")
    assert all(part in result.err for part in expected), result.err


def test_a_checkpoint_of_another_network(launch: Launch) -> None:
    folder = finished(launch("--epochs", "0"))
    before = sorted(Path("results").iterdir())
    place = ("--checkpoint_name", folder.name)
    told(launch(*place, "--model", "MLP5"), "MLP5_finished", "LeNet300_finished")
    told(
        launch(*place, "--model", "MLP5", "--checkpoint_model", "LeNet300_finished"), "contains LeNet300, not MLP5"
    )
    told(launch("--pretrained", folder.checkpoint("LeNet300"), "--model", "MLP5"), "contains LeNet300, not MLP5")
    told(launch(*place, "--pretrained", folder.name), "exclude each other")
    told(launch(*place, "--image_size", "32"), "image_size 28", "32")
    told(launch("--eval", *place, "--checkpoint_model", "LeNet300_fnished"), "did you mean 'LeNet300_finished'?")
    assert sorted(Path("results").iterdir()) == before


@pytest.mark.parametrize("damage", ["cut short", "text", "empty", "foreign"])
def test_a_damaged_checkpoint(launch: Launch, damage: str) -> None:
    folder = finished(launch("--epochs", "0"))
    file = folder.checkpoint("LeNet300")
    whole = file.read_bytes()
    file.write_bytes({"cut short": whole[:-100], "text": b"hello", "empty": b"", "foreign": whole}[damage])
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, file)
    before = sorted(Path("results").iterdir())
    told(launch("--checkpoint_name", folder.name), "LeNet300_finished.safetensors")
    told(launch("--eval", "--checkpoint_name", folder.name), "LeNet300_finished.safetensors")
    told(launch("--pretrained", file), "LeNet300_finished.safetensors")
    assert sorted(Path("results").iterdir()) == before


# Runs that fail on their way

NAN_LOSS = """
import torch
from secateur.losses.CrossEntropy import CrossEntropy


class Mine(CrossEntropy):
    steps = 0

    def __call__(self, outputs, targets):
        loss = super().__call__(outputs, targets)
        if torch.is_grad_enabled() and len(targets) == 16:  # a training step, no trial on two samples
            type(self).steps += 1
            if type(self).steps > 3:
                return loss * float("nan")
        return loss
"""
BREAKING = """
from secateur.trainers.DefaultTrainer import DefaultTrainer
from secateur.utils.errors import UsageError


class Mine(DefaultTrainer):
    def train_step(self, batch):
        if self.progress.step == 3:
            {error}
        return super().train_step(batch)
"""


def only_run() -> RunFolder:
    (path,) = Path("results").iterdir()
    return RunFolder(path)


def test_a_loss_that_is_not_a_number_stops_the_run(launch: Launch, tmp_path: Path) -> None:
    folder = plugin(tmp_path, "losses", "Mine", NAN_LOSS)
    result = launch("--plugins", folder, "--loss", "Mine", "--prune_criterion", "EmptyCrit")
    assert result.code == 1
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    run = only_run()
    assert "not finite at step 3 (epoch 1)" in result.err
    assert str(run.checkpoint("LeNet300", "last")) in result.err
    assert run.stems() == ["LeNet300_CRASH_at_epoch_1", "LeNet300_best", "LeNet300_last"]
    for stem in run.stems():
        model = load_model(run.models / f"{stem}.safetensors")
        assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    last, crash = run.checkpoint("LeNet300", "last"), run.checkpoint("LeNet300", "CRASH_at_epoch_1")
    assert last.read_bytes() != crash.read_bytes()
    assert not run.report.exists()  # it is no finished run
    assert "error: the loss is not finite at step 3" in run.log.read_text()
    assert run.metrics.read_text().count("\n") == 1


def test_a_learning_rate_that_blows_up_is_a_failed_run(launch: Launch) -> None:
    result = launch("--learning_rate", "1e38", "--optimizer", "SGD", "--grad_clip", "0", "--epochs", "3")
    assert result.code == 1 and "not finite" in result.err and result.err.count("\n") == 1
    assert not only_run().report.exists()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in a process that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_leaves_a_checkpoint(launch: Launch, tmp_path: Path) -> None:
    folder = plugin(
        tmp_path, "trainers", "Mine", BREAKING.format(error="import signal; signal.raise_signal(signal.SIGINT)")
    )
    result = launch("--plugins", folder, "--train_scheme", "Mine")
    assert result.code == 130
    assert result.err.strip() == "error: interrupted"
    run = only_run()
    assert run.stems() == ["LeNet300_KILLED_at_epoch_1", "LeNet300_best", "LeNet300_last"]
    killed = load_model(run.checkpoint("LeNet300", "KILLED_at_epoch_1"))
    assert next(killed.parameters()).shape[0] < 300  # as it was then: pruned
    assert run.log.read_text().endswith("interrupted\n")
    on = launch("--checkpoint_name", run.name, "--checkpoint_model", "LeNet300_KILLED_at_epoch_1")
    assert on.code == 0


def test_an_error_of_the_users_code_shows_where_and_keeps_the_network(launch: Launch, tmp_path: Path) -> None:
    folder = plugin(tmp_path, "trainers", "Mine", BREAKING.format(error="raise ZeroDivisionError('oops')"))
    result = launch("--plugins", folder, "--train_scheme", "Mine")
    assert result.code == 1
    assert "Mine.py" in result.err and result.err.endswith("ZeroDivisionError: oops\n")
    run = only_run()
    assert "LeNet300_CRASH_at_epoch_1" in run.stems()
    assert "ZeroDivisionError: oops" in run.log.read_text()


def test_what_is_found_to_be_wrong_in_a_run_is_a_failed_run(launch: Launch, tmp_path: Path) -> None:
    folder = plugin(tmp_path, "trainers", "Mine", BREAKING.format(error="raise UsageError('bad image 7')"))
    result = launch("--plugins", folder, "--train_scheme", "Mine")
    assert result.code == 1 and result.err.startswith("error: bad image 7; the last good network is")


def test_a_criterion_that_breaks_in_a_later_step_is_a_failed_run(launch: Launch, tmp_path: Path) -> None:
    text = HEAD + "    schedule = Before(steps=3)\n" + SCORE
    text += "        factor = 1.0 if self.step == 0 else float('nan')\n"
    text += f"        return {{n: s * factor for n, s in {RIGHT}.items()}}\n"
    folder = plugin(tmp_path, "criterions", "Mine", text)
    result = launch("--plugins", folder, "--prune_criterion", "Mine")
    assert result.code == 1 and "NaN" in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize("when", ["last of the second epoch", "finished"])
def test_a_full_disk_leaves_the_checkpoint_before_readable(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The third `last` (before training, after epoch 0, after epoch 1) or the `finished` one finds no room."""
    written = {"last": 0}
    real = atomic.os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("_last.safetensors"):
            written["last"] += 1
        hit = written["last"] == 3 if when.startswith("last") else str(target).endswith("_finished.safetensors")
        if hit and str(target).endswith(".safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    result = launch("--prune_criterion", "SNAP")
    assert result.code == 1
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and "No space left" in result.err
    run = only_run()
    assert "LeNet300_finished" not in run.stems()
    assert load_model(run.checkpoint("LeNet300", "last")) is not None
    assert not [file for file in run.models.iterdir() if file.name.endswith(".part")]
    assert not run.report.exists()


def test_a_full_disk_while_the_folder_is_made_is_one_line(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("secateur.framework.storage.run_folder.copy_tree", full)
    result = launch()
    assert result.code == 1 and result.err.count("\n") == 1 and "No space left on device" in result.err


def test_metrics_that_cannot_be_written_stop_the_run(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("secateur.framework.reporting.recorder.Recorder.write", full)
    result = launch()
    assert result.code == 1 and result.err.count("\n") == 1 and "No space left on device" in result.err
    assert load_model(only_run().checkpoint("LeNet300", "last")) is not None


def test_every_shipped_network_says_when_an_image_is_too_small(launch: Launch) -> None:
    for name in registry.names("models"):
        try:
            build("models", name, in_channels=1, num_classes=10, image_size=2)
        except ValueError:
            refused(launch("--model", name, "--image_size", "2", "--prune_criterion", "SNIP"), name)
