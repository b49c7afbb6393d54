"""Every key of metrics.jsonl against a computation of its own."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from secateur import Keep, prune, save_model
from secateur.framework.reporting.console import Console
from secateur.framework.reporting.recorder import Recorder
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.trainer import Progress
from tests.networks import ConvNet

X, Y = torch.randn(6, 3, 8, 8), torch.arange(6) % 5


def trainer_of(model: nn.Module, example: Any = X[:1]) -> Any:
    progress = Progress(epoch=2, step=30, samples=480, cumulative_macs=12_345_678)
    settings = SimpleNamespace(epochs=5)
    return SimpleNamespace(
        model=model, example_input=example, progress=progress, macs=777, epoch=2, settings=settings,
        network=lambda: model, state=dict,
    )  # fmt: skip


@pytest.fixture
def recorder(tmp_path: Path) -> Any:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.make_places()
    made = Recorder(folder, Console("off"))
    yield made
    made.close()


def pruned(criterion: str, sparsity: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    model = ConvNet()
    if criterion:
        prune(model, criterion=criterion, sparsity=sparsity, batches=[(X, Y)])
    return model


@pytest.mark.parametrize("criterion", ["", "SNIP", "SNAP"])
def test_sparsities_are_shares_of_the_dense_network(criterion: str, recorder: Recorder) -> None:
    model, dense = pruned(criterion), pruned("")
    row = recorder.write(trainer_of(model), {})
    names = [f"{name}.weight" for name in "abcd"]
    whole = {name: dense.get_parameter(name) for name in names}
    now = {name: model.get_parameter(name) for name in names}
    left = sum(int((weight != 0).sum()) for weight in now.values())
    assert row["sparse/weight"] == pytest.approx(1 - left / sum(w.numel() for w in whole.values()), abs=1e-12)
    hidden = names[:3]  # the fourth gives the classes
    units = sum(int((now[name].flatten(1) != 0).any(dim=1).sum()) for name in hidden)
    assert row["sparse/node"] == pytest.approx(1 - units / sum(len(whole[name]) for name in hidden), abs=1e-12)
    for name in names:
        share = 1 - int((now[name] != 0).sum()) / whole[name].numel()
        assert row[f"layer/sparsity/{name[0]}"] == pytest.approx(share, abs=1e-12)
    if criterion:
        key = "sparse/weight" if criterion == "SNIP" else "sparse/node"
        assert row[key] == pytest.approx(0.5, abs=0.03)
    else:
        assert row["sparse/weight"] == row["sparse/node"] == row["sparse/hm"] == 0


@pytest.mark.parametrize(
    ("metrics", "accuracy"),
    [
        ({"acc/test": 0.8, "acc/val": 0.3}, 0.8),
        ({"acc/val": 0.3, "acc/train": 0.9}, 0.3),
        ({"acc/train": 0.9}, 0.9),
    ],
)
def test_hm_is_the_harmonic_mean_with_the_best_accuracy_at_hand(
    metrics: dict[str, float], accuracy: float, recorder: Recorder
) -> None:
    row = recorder.write(trainer_of(pruned("SNIP")), metrics)
    assert row["sparse/hm"] == pytest.approx(2 / (1 / row["sparse/weight"] + 1 / accuracy))
    assert recorder.write(trainer_of(pruned("SNIP")), {"acc/val": 0.0})["sparse/hm"] == 0


def test_the_disk_size_of_a_dense_or_cut_network_is_that_of_its_file(recorder: Recorder, tmp_path: Path) -> None:
    for criterion in ("", "SNAP"):
        model = pruned(criterion)
        row = recorder.write(trainer_of(model), {})
        save_model(model, tmp_path / "model.safetensors")
        assert row["sparse/log_disk_size"] == math.log((tmp_path / "model.safetensors").stat().st_size)


def test_the_disk_size_of_a_masked_network_is_that_of_sparse_rows(recorder: Recorder) -> None:
    dense, few = (math.exp(recorder.write(trainer_of(pruned("SNIP", share)), {})["sparse/log_disk_size"])
                  for share in (0.1, 0.9))  # fmt: skip
    gone = sum(int((w == 0).sum()) for w in pruned("SNIP", 0.9).parameters()) - sum(
        int((w == 0).sum()) for w in pruned("SNIP", 0.1).parameters()
    )
    assert dense - few >= 6 * gone  # 4 bytes for the value and at least 2 for its column
    model = pruned("SNIP", 0.9)
    prunable = [model.get_parameter(f"{name}.weight") for name in "abcd"]
    entries = sum(int((weight != 0).sum()) for weight in prunable)
    others = sum(t.numel() * t.element_size() for t in model.state_dict().values()) - sum(
        4 * weight.numel() for weight in prunable
    )
    assert few >= others + 6 * entries
    assert few <= others + 8 * entries + 8 * sum(len(weight) + 1 for weight in prunable) + 8192  # and the header


def test_work_is_that_of_one_sample_and_of_all_so_far(recorder: Recorder) -> None:
    row = recorder.write(trainer_of(pruned("")), {})
    assert row["time/flops_per_sample"] == 777
    assert 10 ** row["time/flops_log_cum"] == pytest.approx(12_345_678)
    assert (row["epoch"], row["step"], row["samples"]) == (2, 30, 480)


def test_times_are_of_the_batches_since_the_last_row(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("secateur.framework.reporting.recorder.time.monotonic", lambda: now[0])
    trainer = trainer_of(pruned(""))
    recorder.run_started(trainer)
    now[0] = 107.0  # pruning before training is no batch
    recorder.epoch_started(trainer)
    for _ in range(4):
        now[0] += 0.5
        recorder.batch_ended(trainer, torch.zeros(()))
    now[0] += 3.0  # the evaluation
    row = recorder.write(trainer, {})
    assert row["time/gpu_time"] == 500 and row["time/batch_time"] == 1.25 and row["seconds"] == 12
    now[0] += 1
    again = recorder.write(trainer, {})
    assert "time/gpu_time" not in again and "time/batch_time" not in again


def test_memory_is_what_the_device_has_allocated(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("secateur.framework.reporting.recorder.node_sparsity", lambda *_: 0.0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: asked.append(device) or 4096)
    cuda = torch.device("cuda:1")
    row = recorder.write(trainer_of(pruned(""), SimpleNamespace(device=cuda)), {})
    assert row["cuda/ram_footprint"] == 4096.0 and asked == [cuda]
    assert "cuda/ram_footprint" not in recorder.write(trainer_of(pruned("")), {})


def test_metrics_are_written_as_they_are(recorder: Recorder) -> None:
    metrics = {"acc/train": 0.25, "loss/train": 1.5, "penalty/train": 0.1, "acc/val": 0.5, "loss/val": 1.25,
               "acc/test": 0.75, "loss/test": 1.0}  # fmt: skip
    row = recorder.write(trainer_of(pruned("")), metrics)
    assert {key: row[key] for key in metrics} == metrics
    assert recorder.rows == [row]


def test_a_pruning_step_is_reported_in_the_measure_of_its_budget(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(recorder, "_console", SimpleNamespace(say=said.append))
    event = PruneEvent(0.5, 0.49, Keep({"a": torch.tensor([True, False])}), {}, budget="macs")
    recorder.pruned(trainer_of(ConvNet()), event)
    assert said == ["pruned macs to 0.4900 (asked 0.5000), 777 MACs a sample"]
