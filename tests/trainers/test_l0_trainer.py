"""L0Trainer: gates that train and are clamped, averages that are right, and a smaller plain network in the end."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import load_model
from secateur.framework.commands.dense_baseline import finished_dense_runs
from secateur.framework.network.batch_norm import measured_statistics, running_statistics
from secateur.framework.network.layers import prunable_layers
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import weight_sparsity
from secateur.framework.pruning.channels.discovery import node_sparsity
from secateur.framework.pruning.gated_layers.hard_concrete import LARGEST, SMALLEST, l0_layers
from secateur.framework.pruning.gated_layers.l0_network import Closed
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.checkpointer import Checkpointer
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.training.hooks import hookimpl
from secateur.trainers.L0Trainer import L0Trainer, _left_as_zeros
from secateur.utils.optimizers import unwrapped
from tests.runs.test_run import launch

L0 = {"l0": True, "prune_criterion": "EmptyCrit", "loss": "L0CrossEntropy", "train_scheme": "L0Trainer"}
Assembled = Callable[..., tuple[L0Trainer, Any]]
#: closes many gates within a few steps
QUICK = {"l0_reg": 5.0, "set": {"trainer": {"gate_lr": 300.0, "norm_batches": 2}}}


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Written:
    """The parameters after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    @hookimpl
    def batch_ended(self, trainer: Any) -> None:
        self.steps.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})


@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_the_average_is_the_weighted_mean_of_the_steps_from_the_first_one_on(
    assembled: Assembled, beta: float
) -> None:
    written = Written()
    trainer, _ = assembled(written, **L0, beta_ema=beta, set={"trainer": {"norm_batches": 0}})
    for count in (1, 4):
        while len(written.steps) < count:
            trainer._update(next(iter(trainer.loaders.train)))
        weights = torch.tensor([beta ** (count - 1 - step) for step in range(count)], dtype=torch.float64)
        weights /= weights.sum()
        with trainer._averaged():
            for name, parameter in trainer.model.named_parameters():
                steps = torch.stack([step[name] for step in written.steps]).double()
                expected = (weights.view(-1, *[1] * parameter.dim()) * steps).sum(0)
                torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-3, atol=1e-6)


def test_averages_and_statistics_are_swapped_out_to_the_last_bit(assembled: Assembled) -> None:
    trainer, _ = assembled(**L0, **QUICK)
    trainer.train_epoch()
    before = everything(trainer.model)
    first = trainer.evaluate(trainer.loaders.test)
    assert equal(everything(trainer.model), before)
    trainer.network()
    assert equal(everything(trainer.model), before)
    assert trainer.evaluate(trainer.loaders.test) == first
    with pytest.raises(RuntimeError, match="on purpose"), trainer._averaged():
        assert not equal(everything(trainer.model), before)
        raise RuntimeError("on purpose")
    assert equal(everything(trainer.model), before)


def test_looking_at_the_network_does_not_change_how_training_goes_on(assembled: Assembled) -> None:
    found = []
    for look in (False, True):
        trainer, _ = assembled(**L0, **QUICK)
        torch.manual_seed(5)
        trainer.train_epoch()
        if look:
            trainer.network()
            trainer.evaluate(trainer.loaders.val)
        trainer.train_epoch()
        found.append(everything(trainer.model))
    assert equal(*found)


def test_without_an_average_the_weights_themselves_are_evaluated(assembled: Assembled) -> None:
    trainer, _ = assembled(**L0, beta_ema=0.0, set={"trainer": {"norm_batches": 0}})
    trainer.train_epoch()
    before = everything(trainer.model)
    with trainer._averaged():
        assert equal(everything(trainer.model), before)


def test_log_alphas_are_clamped_after_every_step(assembled: Assembled) -> None:
    written = Written()
    trainer, _ = assembled(written, **L0, l0_reg=50.0, set={"trainer": {"gate_lr": 2000.0}})
    assert len(l0_layers(trainer.model)) == 5
    trainer.train_epoch()
    for step in written.steps:
        alphas = torch.cat([value for name, value in step.items() if name.endswith("log_alpha")])
        assert float(alphas.min()) >= SMALLEST - 1e-6 and float(alphas.max()) <= LARGEST + 1e-6
    assert float(alphas.min()) == pytest.approx(SMALLEST)  # it was needed


def test_lambda_rho_and_the_number_of_samples_come_from_the_flags_and_the_data(assembled: Assembled) -> None:
    options = {"trainer": {"local_rep": True, "droprate_init": 0.2, "temperature": 0.5}}
    trainer, _ = assembled(**L0, l0_reg=0.7, l2_reg=1e-3, set=options)
    for layer in l0_layers(trainer.model).values():
        assert (layer.l0_reg, layer.samples, layer.rho) == (0.7, 5400, pytest.approx(5.4))
        assert layer.local_rep and layer.temperature == 0.5
        assert float(layer.log_alpha.mean().detach()) == pytest.approx(math.log(4), abs=0.02)
    groups = unwrapped(trainer.optimizer).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0, 0.0]  # it is part of the penalty
    assert [group["lr"] for group in groups] == pytest.approx([2e-3, 2e-3, 2e-2])
    assert [len(group["params"]) for group in groups] == [5, 13, 5]


def test_the_network_that_is_left_computes_what_the_gated_one_did(assembled: Assembled) -> None:
    trainer, _ = assembled(**L0, **QUICK)
    for _ in range(5):
        trainer.train_epoch()
    x = torch.cat([inputs for inputs, _ in trainer.loaders.test])
    with trainer._averaged(), torch.no_grad():
        expected = trainer.model.eval()(x)
    tested = trainer.evaluate(trainer.loaders.test)
    trainer.finish()
    assert not l0_layers(trainer.model)
    assert weight_sparsity(trainer.model) > 0.05 and trainer.report()["cut"] > 0
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(x), expected, rtol=1e-5, atol=1e-5)
    after = trainer.evaluate(trainer.loaders.test)
    assert after["acc"] == tested["acc"] and after["loss"] == pytest.approx(tested["loss"], rel=1e-5)
    assert trainer.network() is trainer.model
    report = trainer.report()
    assert report["closed"] == report["cut"] + report["left_as_zeros"] <= report["gates"]


def test_checkpoints_on_the_way_load_and_give_the_accuracy_that_was_reported(
    assembled: Assembled, tmp_path: Path
) -> None:
    class Check:
        """Tests the file as soon as it is there."""

        compared = 0

        @hookimpl(trylast=True)
        def epoch_ended(self, trainer: Any, metrics: dict[str, float]) -> None:
            folder = RunFolder(tmp_path)
            model = load_model(folder.checkpoint("LeNet5", "last")).eval()
            hits = total = 0
            with torch.no_grad():
                for inputs, targets in trainer.loaders.val:
                    hits += int((model(inputs).argmax(1) == targets).sum())
                    total += len(targets)
            assert hits / total == metrics["acc/val"]
            assert not any("log_alpha" in name for name in model.state_dict())
            Check.compared += 1

    trainer, _ = assembled(Checkpointer(RunFolder(tmp_path), "LeNet5"), Check(), **L0, **QUICK)
    trainer.train()
    assert Check.compared == 3
    best = load_model(RunFolder(tmp_path).checkpoint("LeNet5", "best"))
    assert all(type(layer) in (nn.Conv2d, nn.Linear) for layer in prunable_layers(best).values())


def test_masks_that_a_network_came_with_hold(assembled: Assembled) -> None:
    trainer, pruner = assembled(**L0, beta_ema=0.9)
    name = "features.4.weight"
    mask = torch.ones_like(dict(trainer.model.named_parameters())[name])
    mask[3:9] = 0
    Masks(trainer.model).hold({name: mask})
    pruner.run_started(trainer=trainer)
    trainer.train_epoch()
    plain = trainer.network()
    assert not dict(plain.named_parameters())[name][mask == 0].any()
    assert node_sparsity(plain, trainer.example_input) >= 6 / 226


def test_measured_statistics_are_what_the_network_is_left_with(assembled: Assembled) -> None:
    trainer, _ = assembled(**L0, set={"trainer": {"norm_batches": 3}})
    trainer.train_epoch()
    with trainer._averaged():
        expected = [buffer.clone() for buffer in running_statistics(trainer.model)]
        again = measured_statistics(trainer.model, _first(trainer, 3))
    for one, other in zip(expected, again, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(expected, running_statistics(trainer.network()), strict=True):
        assert torch.equal(one, other)


def _first(trainer: Any, count: int) -> list[Tensor]:
    return [
        inputs
        for inputs, _ in trainer.loaders.scoring_batches(
            "random", batches=count, samples=None, batch_size=32, seed=trainer.settings.seed, step=0
        )
    ]


FLAGS = "--l0 --l0_reg 5 --set trainer.gate_lr=300 --set trainer.norm_batches=2 --epochs 3"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return launch(tmp_path_factory.mktemp("l0"), *FLAGS.split(), "--train_dense")


def test_the_flag_chooses_loss_trainer_and_criterion(run: Any) -> None:
    for name, value in (
        ("prune_criterion", "EmptyCrit"),
        ("loss", "L0CrossEntropy"),
        ("train_scheme", "L0Trainer"),
    ):
        assert f'preset: {name} = "{value}" (--l0' in run.out
    assert run.folder.name.endswith("_LeNet5_L0")


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        (
            Closed(30, 9, 4, 4),
            "4 of 9 closed gates were masked, not cut: 4 belong to inputs",
        ),
        (Closed(30, 9, 4, 0), "4 of 9 closed gates were masked, not cut: 4 belong to channels"),
        (Closed(30, 9, 4, 1), "never cut; 3 belong to channels"),
    ],
)
def test_what_stays_as_zeros_is_told_with_its_reason(closed: Closed, said: str) -> None:
    text = _left_as_zeros(closed)
    assert said in text and ("inputs" in text) == (closed.inputs > 0)
    assert ("open" in text) == (closed.left > closed.inputs)


@pytest.mark.parametrize("closed", ["all layers", "one layer", "half of one layer"])
def test_a_network_that_says_the_same_of_every_image_is_called_by_its_name(
    assembled: Assembled, closed: str
) -> None:
    trainer, _ = assembled(**L0, **QUICK)
    with torch.no_grad():
        for number, layer in enumerate(l0_layers(trainer.model).values()):
            if closed == "all layers" or number == 1:
                shut = len(layer.log_alpha) // 2 if "half" in closed else len(layer.log_alpha)
                layer.log_alpha[:shut] = -10
    trainer.finish()
    said = any("l0_reg is too large" in line for line in trainer.progress.warnings)
    assert said == ("half" not in closed)


def test_the_report_tells_what_became_of_the_gates(run: Any) -> None:
    report = run.report
    assert report["trainer"]["name"] == "L0Trainer" and report["trainer"]["gates"] == 6 + 16 + 120 + 1080 + 84
    assert report["trainer"]["cut"] > 0 == report["trainer"]["inputs_as_zeros"]
    model = run.network()
    assert report["pruned"]["params"] == sum(p.numel() for p in model.parameters()) < report["dense"]["params"]
    assert report["reached"]["weight_sparsity"] == pytest.approx(weight_sparsity(model)) and len(
        report["warnings"]
    ) == (report["trainer"]["left_as_zeros"] > 0)


def test_the_dense_network_beside_it_is_trained_without_gates(run: Any) -> None:
    inner = json.loads((run.folder.path / "dense" / "report.json").read_text())
    assert inner["trainer"] == {"name": "DefaultTrainer"} and inner["reached"]["weight_sparsity"] == 0
    assert run.report["dense"]["accuracy"] == inner["pruned"]["accuracy"]


def test_every_row_has_the_expected_l0_while_there_are_gates(run: Any) -> None:
    rows = run.rows
    values = [row["norm/l0"] for row in rows if "norm/l0" in row]
    assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] < 142_798
    assert "norm/l0" not in rows[-1] and rows[-1]["acc/test"] == run.report["pruned"]["accuracy"]
    assert all(row["penalty/train"] > 0 for row in rows[:3])


def test_rows_tell_the_sparsity_of_the_network_that_eval_mode_leaves(run: Any) -> None:
    last = load_model(next(run.folder.models.glob("*_last.safetensors")))
    row = run.rows[2]
    assert row["sparse/weight"] == pytest.approx(weight_sparsity(last)) and row["sparse/weight"] > 0
    x = torch.zeros(1, 1, 28, 28)
    assert row["sparse/node"] == pytest.approx(node_sparsity(last, x))


def test_eval_gives_the_accuracy_of_the_report(run: Any) -> None:
    again = launch(run.folder.path.parent.parent, "--eval", "--checkpoint_name", run.folder.path)
    assert again.report["accuracy"] == run.report["pruned"]["accuracy"]


def test_the_config_repeats_the_run_bit_for_bit(run: Any, tmp_path: Path) -> None:
    again = launch(tmp_path, "--config", run.folder.config, "--epochs", 3)
    assert again.bytes() == run.bytes() and again.bytes("last") == run.bytes("last")


def test_a_run_with_gates_is_nobodys_dense_network(run: Any) -> None:
    results = str(run.folder.path.parent)
    config = RunConfig.from_dict(run.folder.read_config().to_dict() | {"results_dir": results})
    assert not list(finished_dense_runs(config, []))


def test_an_l0_network_can_be_trained_on_with_a_criterion(run: Any) -> None:
    place = run.folder.path.parent.parent
    again = launch(
        place, "--checkpoint_name", run.folder.path, "--prune_criterion", "SNIP", "--pruning_limit", 0.9
    )
    assert again.report["reached"]["weight_sparsity"] >= 0.9 - 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ResNet18", "Conv6"])
def test_larger_networks_end_smaller(tmp_path: Path, model: str) -> None:
    found = launch(tmp_path, *FLAGS.split(), "--model", model)
    assert found.report["pruned"]["params"] < found.report["dense"]["params"]
    assert found.report["trainer"]["cut"] > 0
    again = launch(tmp_path, "--eval", "--model", model)
    assert again.report["accuracy"] == found.report["pruned"]["accuracy"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--l0 --prune_criterion SNIP", "it needs --prune_criterion EmptyCrit, not SNIP"),
        ("--l0 --loss CrossEntropy", "it needs --loss L0CrossEntropy, not CrossEntropy"),
        ("--l0 --train_scheme TickTock", "it needs --train_scheme L0Trainer, not TickTock"),
        ("--train_scheme L0Trainer", "--train_scheme L0Trainer is for networks with gates: it needs --l0"),
        ("--loss L0CrossEntropy", "--loss L0CrossEntropy is for networks with gates: it needs --l0"),
        ("--l0 --l0_reg -1", "--l0_reg must be at least 0"),
        ("--l0 --beta_ema 1", "--beta_ema must be in [0, 1)"),
        ("--l0 --set trainer.l0_reg=1", "--set trainer.l0_reg: use --l0_reg"),
        ("--l0 --set trainer.droprate_init=1", "droprate_init must be a number > 0 and < 1, got 1"),
        ("--l0 --set trainer.temperature=0", "temperature must be a number > 0, got 0"),
        ("--l0 --set trainer.gate_lr=0", "gate_lr must be a number > 0, got 0"),
        ("--l0 --set trainer.norm_batches=-1", "norm_batches must be a whole number >= 0, got -1"),
        ("--l0 --set trainer.local_rep=maybe", "local_rep must be true or false, got 'maybe'"),
        ("--l0 --set trainer.local=true", "did you mean 'local_rep'?"),
    ],
)
def test_what_cannot_go_is_refused_in_one_line(tmp_path: Path, given: str, said: str) -> None:
    found = launch(tmp_path, *given.split(), code=2)
    assert said in found.err and found.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_options_that_mean_the_same_network_differ_in_their_draws(assembled: Assembled) -> None:
    found = []
    for local in (False, True):
        trainer, _ = assembled(**L0, set={"trainer": {"local_rep": local}})
        torch.manual_seed(1)
        trainer.train_epoch()
        found.append(everything(trainer.model))
    assert not equal(*found)
