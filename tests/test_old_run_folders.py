"""Run folders made by an earlier version, of the commit in their environment.json: cut, masked, and by L0."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from secateur import build, load_model, measure
from secateur.main import main
from tests import ROOT

FOLDERS = ROOT / "tests" / "old_run_folders"
NAMES = {
    "cut": "2026-11-30_07-46-52_LeNet5_SNAPit",
    "masked": "2026-11-30_07-48-00_LogisticRegression_SNIP",
    "l0": "2026-11-30_07-53-55_LeNet5_L0",
}
SHORT = "--data_set FASHION_MINI --limit_test_batches 4 --batch_size 32 --threads 1 --no_latency --progress off"


@pytest.fixture(params=NAMES)
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the results of an empty place."""
    folder = tmp_path / "results" / NAMES[request.param]
    shutil.copytree(FOLDERS / request.param, folder)
    monkeypatch.chdir(tmp_path)
    return folder


def report_of(folder: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((folder / "report.json").read_text())
    return facts


def newest(pattern: str) -> Path:
    return max(Path("results").glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def test_the_network_loads_with_its_size(old: Path) -> None:
    (checkpoint,) = (old / "models").iterdir()
    model = load_model(checkpoint)
    expected = report_of(old)["pruned"]
    assert isinstance(expected, dict)
    facts = measure(model, torch.zeros(1, 1, 28, 28), latency=False)
    assert facts["macs"] == expected["macs"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]


def test_it_is_evaluated_as_it_was(old: Path) -> None:
    words = ["--eval", "--model", str(report_of(old)["model"]), "--checkpoint_name", old.name, *SHORT.split()]
    assert main(words) == 0
    evaluated = json.loads((newest("*eval*") / "report.json").read_text())
    expected = report_of(old)["pruned"]
    assert isinstance(expected, dict)
    assert evaluated["accuracy"] == expected["accuracy"]


def test_it_is_trained_on(old: Path) -> None:
    before = report_of(old)
    words = ["--model", str(before["model"]), "--checkpoint_name", old.name, "--epochs", "1"]
    words += ["--limit_train_batches", "2", "--plot_weights_freq", "0", *SHORT.split()]
    if "SNIP" in old.name:  # masks stay through further training and a further pruning
        words += ["--prune_criterion", "SNIP", "--pruning_limit", "0.95"]
    assert main(words) == 0
    after = report_of(next(path for path in Path("results").iterdir() if path.name != old.name))
    reached, was = after["reached"], before["reached"]
    assert isinstance(reached, dict) and isinstance(was, dict)
    sparsity = 0.95 if "SNIP" in old.name else was["weight_sparsity"]
    assert reached["weight_sparsity"] == pytest.approx(sparsity, abs=1e-4)
    assert reached["node_sparsity"] == pytest.approx(was["node_sparsity"], abs=1e-9)


def test_its_settings_are_read_and_repeat_it(old: Path) -> None:
    if "L0" in old.name:  # it went on from the cut network
        shutil.copytree(FOLDERS / "cut", old.parent / NAMES["cut"])
    assert main(["--config", str(old / "config.yaml"), "--run_name", "again", "--plot_weights_freq", "0"]) == 0
    again = report_of(newest("*again"))
    assert again["criterion"] == report_of(old)["criterion"]
    assert again["reached"] == report_of(old)["reached"]


def test_a_dense_model_of_today_has_the_names_of_the_old_one() -> None:
    (checkpoint,) = (FOLDERS / "masked" / "models").iterdir()
    today = build("models", "LogisticRegression", in_channels=1, num_classes=10, image_size=28)
    assert load_model(checkpoint).state_dict().keys() == today.state_dict().keys()
