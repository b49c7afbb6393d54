"""The numbers that --eval adds on request, against counting by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import load_model, measure, save_model
from secateur.framework.plugins.registry import build
from secateur.framework.reporting.measure import dense_twin
from secateur.utils.loading.loaders import make_loaders
from tests.runs.test_run import Run, launch

EXTRAS = ("train_acc", "test_acc", "flops", "compression")
ALL = [f"--{name}" for name in EXTRAS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs."""
    return tmp_path_factory.mktemp("extras")


@pytest.fixture(scope="module")
def cut(place: Path) -> Run:
    """LeNet5 without half of its channels; training images were augmented."""
    return launch(place, "--prune_criterion", "SNAP", "--augment", "flip", "--run_name", "cut")


@pytest.fixture(scope="module")
def masked(place: Path) -> Run:
    """LeNet5 without most of its weights."""
    return launch(place, "--prune_criterion", "SNIP", "--pruning_limit", "0.9", "--run_name", "masked")


def hits(model: Any, loader: Any, batches: int | None) -> float:
    """Share of right answers, image by image."""
    positions = torch.arange(loader.num_samples)[: batches * loader.batch_size if batches else None]
    right = total = 0
    with torch.inference_mode():
        for inputs, targets in loader.plain(positions.split(500)):
            right += sum(int(a) == int(b) for a, b in zip(model(inputs).argmax(1), targets, strict=True))
            total += len(targets)
    assert total == len(positions)
    return right / total


@pytest.mark.parametrize("name", ["cut", "masked"])
def test_the_numbers_are_those_of_the_checkpoint(
    name: str, place: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Run = request.getfixturevalue(name)
    tested = launch(place, "--eval", "--checkpoint_name", run.folder.name, *ALL, "--limit_train_batches", "9")
    found = tested.report["extras"]
    model = run.network().eval()
    loaders = make_loaders(build("datasets", "FASHION_MINI"), batch_size=32, seed=333)
    assert found["train_acc"] == hits(model, loaders.train, 9)
    assert found["test_acc"] == hits(model, loaders.test, 2) == tested.report["accuracy"]
    example = torch.zeros(1, 1, 28, 28)
    twin, numbers = dense_twin(model, example), measure(model, example, latency=False)
    save_model(twin, tmp_path / "dense.safetensors")
    save_model(model, tmp_path / "now.safetensors")
    dense, now = ((tmp_path / f"{one}.safetensors").stat().st_size for one in ("dense", "now"))
    assert found["compression"] == {
        "ratio": dense / now, "dense_bytes": dense, "bytes": now, "csr_bytes": numbers["csr_bytes"],
    }  # fmt: skip
    assert found["flops"]["dense"] == 497_160
    assert (found["flops"]["now"], found["flops"]["effective"]) == (numbers["macs"], numbers["effective_macs"])
    smaller = found["flops"]["effective" if name == "masked" else "now"]
    assert smaller < 0.7 * found["flops"]["dense"]
    assert (found["compression"]["ratio"] > 1.5) == (name == "cut")
    for text in (
        f"training images: {found['train_acc']:.4f}",
        f"test images: {found['test_acc']:.4f}",
        f"MACs of one sample: {numbers['macs']:,} (dense 497,160",
        f"{dense / now:.2f} ({dense:,} bytes",
    ):
        assert text in tested.out  # fmt: skip


def test_all_training_images_count_and_none_is_augmented(place: Path, cut: Run) -> None:
    from secateur.framework.commands.evaluate import accuracy, plain_training

    loaders = make_loaders(build("datasets", "FASHION_MINI"), batch_size=64, seed=333, augment="cutout")
    model = cut.network()
    assert accuracy(model, plain_training(loaders)) == hits(model.eval(), loaders.train, None)


def test_each_flag_adds_its_own_number_and_without_any_the_report_is_as_before(place: Path, cut: Run) -> None:
    plain = launch(place, "--eval", "--checkpoint_name", cut.folder.name)
    assert "extras" not in plain.report
    for name in EXTRAS:
        few = ("--limit_train_batches", "1")
        found = launch(place, "--eval", "--checkpoint_name", cut.folder.name, f"--{name}", "True", *few)
        assert list(found.report["extras"]) == [name]
        assert {key: value for key, value in found.report.items() if key != "extras"} == plain.report


@pytest.mark.slow
def test_another_tester_gets_the_test_accuracy_too(place: Path, cut: Run) -> None:
    found = launch(place, "--eval", "--checkpoint_name", cut.folder.name, "--test_acc", "--test_scheme",
                   "CorruptionRobustness", "--set", "tester.noise=[0.1]")  # fmt: skip
    plain = launch(place, "--eval", "--checkpoint_name", cut.folder.name)
    assert found.report["extras"]["test_acc"] == plain.report["accuracy"]


def test_a_model_path_is_a_checkpoint_or_a_run_folder(place: Path, cut: Run, masked: Run) -> None:
    file = cut.folder.models / "LeNet5_last.safetensors"
    by_file = launch(place, "--eval", "--model_path", file, "--pruned", "True", "--flops")
    assert by_file.report["checkpoint"] == f"{cut.folder.name}/LeNet5_last"
    assert "deprecated: --model_path; write --checkpoint_name" in by_file.out
    assert "--pruned has no effect" in by_file.out
    by_folder = launch(place, "--eval", "--model_path", cut.folder.path)
    assert by_folder.report["checkpoint"] == f"{cut.folder.name}/LeNet5_finished"
    load_model(file)
