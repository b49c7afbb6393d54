"""Whole runs in rounds and every few batches: phases, statistics, repetitions, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.framework.pruning.channels.discovery import node_sparsity
from secateur.framework.storage.checkpoint import load_model
from secateur.framework.storage.run_folder import RunFolder
from tests.command_line import run_main

SMALL = (
    "--model LeNet300 --batch_size 16 --limit_train_batches 4 --limit_test_batches 2 --threads 1 "
    "--plot_weights_freq 0 --progress off"
)
Launch = Callable[..., Any]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launch:
    """Run a command in an empty folder: its folder and what it printed, or what it was refused for."""
    monkeypatch.chdir(tmp_path)

    def call(command: str, code: int = 0) -> Any:
        run = run_main(tmp_path, *(SMALL.split() if "--config" not in command else ()), *command.split())
        assert run.code == code, run.err
        if code:
            assert run.err.count("\n") == 1 and list(tmp_path.iterdir()) == []
            return run.err
        return run.folder, run.out

    return call


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def finished(folder: RunFolder) -> bytes:
    return (folder.models / "LeNet300_finished.safetensors").read_bytes()


def test_a_run_in_rounds_has_its_phases_and_statistics_and_can_be_repeated(launch: Launch) -> None:
    folder, out = launch(
        "--prune_criterion LossBased --imp_samples 64 --thresholds 20,50 --warmup_epochs 2 --epochs 4 "
        "--lr_prune 0.01 --track_stats --group_wd_coeff 0.001 --no_preserve_moment"
    )
    rows = rows_of(folder)
    assert [row["phase"] for row in rows] == ["warmup", "pruning", "pruning", "final", "final"]
    assert [round(row["sparse/node"], 2) for row in rows] == [0, 0, 0.2, 0.5, 0.5]
    report = json.loads(folder.report.read_text())
    statistics = report["statistics"]
    assert {name: len(found["test"]) for name, found in statistics.items()} == {
        "warmup": 1, "pruning_and_training": 2, "final_training": 1
    }  # fmt: skip
    train = sum((found["train"] for found in statistics.values()), [])
    assert train == pytest.approx([100 * row["acc/train"] for row in rows[:-1]])
    assert report["asked_sparsity"] == 0.5 and report["reached"]["node_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert "recommended: T = 5.0" in out
    again, _ = launch(f"--config {folder.config}")
    assert finished(again) == finished(folder)
    assert [row["phase"] for row in rows_of(again)] == [row["phase"] for row in rows]


def test_a_run_every_few_batches_meets_the_limit_and_can_be_repeated(launch: Launch) -> None:
    folder, _ = launch("--prune_criterion TaylorGate --schedule iterative --epochs 3 --pruning_limit 0.4")
    assert [row["phase"] for row in rows_of(folder)] == ["pruning", "pruning", "final", "final"]
    model = load_model(folder.models / "LeNet300_finished.safetensors")
    assert node_sparsity(model, torch.zeros(1, 1, 28, 28)) == pytest.approx(0.4, abs=1e-9)
    again, _ = launch(f"--config {folder.config}")
    assert finished(again) == finished(folder)


def test_numbers_of_channels_are_met_exactly_and_the_best_epoch_is_of_the_network_as_pruned(
    launch: Launch,
) -> None:
    folder, out = launch(
        "--prune_criterion MagBased --prune_per_iteration 30 --maximum_pruning_iterations 2 "
        "--frequency 3 --epochs 3"
    )
    assert "(30 channels, asked 30)" in out
    report = json.loads(folder.report.read_text())
    assert report["asked_sparsity"] is None and report["reached"]["node_sparsity"] == pytest.approx(60 / 400)
    best = load_model(folder.models / "LeNet300_best.safetensors")
    assert sum(p.shape[0] for p in best.parameters() if p.dim() > 1) == 410 - 60
    again, _ = launch(f"--config {folder.config}")
    assert finished(again) == finished(folder)


def test_where_numbers_of_channels_were_asked_for_no_share_was_even_if_no_step_came(launch: Launch) -> None:
    folder, out = launch(
        "--prune_criterion TaylorGate --frequency 30 --prune_per_iteration 5 --maximum_pruning_iterations 2 "
        "--epochs 1"
    )
    assert json.loads(folder.report.read_text())["asked_sparsity"] is None
    assert "asked" not in out


def test_tracked_scores_and_ways_from_the_start_run_from_the_command_line(launch: Launch) -> None:
    for criterion in ("BiasedLossTracked", "BiasedLoss"):
        folder, _ = launch(f"--prune_criterion {criterion} --imp_samples 64 --n_rounds 1 --epochs 2")
        again, _ = launch(f"--config {folder.config}")
        assert finished(again) == finished(folder)
        assert rows_of(folder)[-1]["sparse/node"] == pytest.approx(0.5)


def test_the_dense_network_takes_the_same_flags_and_a_line_says_what_they_do(launch: Launch) -> None:
    folder, out = launch("--prune_criterion EmptyCrit --n_rounds 3 --epochs 1")
    assert "EmptyCrit prunes nothing: --schedule rounds has no effect" in out
    assert {row["phase"] for row in rows_of(folder)} == {"final"}


def test_a_network_whose_gates_close_all_along_is_in_the_phase_of_pruning(launch: Launch) -> None:
    folder, _ = launch("--l0 --epochs 2")
    assert [row["phase"] for row in rows_of(folder)] == ["pruning", "pruning", "final"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--prune_criterion MagBased --n_rounds 5 --epochs 3", "each need 5 epochs, and epochs is 3"),
        ("--prune_criterion SNIP --n_rounds 2 --warmup_epochs 4 --epochs 4", "of warm-up need 5 epochs"),
        ("--prune_criterion SNAP --frequency 30 --epochs 2", "the first pruning comes after 30 batches"),
        ("--prune_criterion SNAP --schedule iterative --epochs 0", "epochs is 0"),
        ("--prune_criterion SNAP --frequency 2 --fixed_layer 2", "LeNet300 has 2 layers to prune, 0 to 1"),
        ("--prune_criterion SNAP --track_importance", "SNAP prunes before training: add --schedule during"),
        ("--prune_criterion BiasedLoss --schedule before --use_init", "BiasedLoss prunes before training"),
        ("--prune_criterion SNIP --group_size 2", "--group_size cannot be combined with SNIP"),
        ("--prune_criterion SNIP --fixed_layer 1", "--fixed_layer cannot be combined with SNIP"),
        ("--prune_criterion SNIP --flops_regularization 1", "--flops_regularization cannot be combined with SNIP"),
        ("--prune_criterion CNIP --prune_per_iteration 9", "which ranks weights and channels together"),
        ("--prune_criterion GroupHoyerSquare --prune_per_iteration 9", "which prunes by a fixed threshold"),
        ("--train_scheme TickTock --prune_criterion SNAP --n_rounds 2", "TickTock determines the schedule"),
        ("--prune_criterion SNAP --frequency 2 --prune_per_iteration 2 --group_size 3", "2 channels per step in"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    launch: Launch, arguments: str, words: str
) -> None:
    assert words in launch(arguments, code=2)
