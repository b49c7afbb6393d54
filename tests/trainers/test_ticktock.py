"""TickTock: phases that fit any number of epochs, gates that train, and a plain network in the end."""

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.framework.network.layers import prunable_layers
from secateur.framework.pruning.channels.discovery import node_sparsity
from secateur.framework.pruning.gated_layers.gated_batch_norm import gated_norms
from secateur.framework.schedules.base import even_targets
from secateur.framework.storage.checkpoint import load_model
from secateur.framework.training.hooks import hookimpl
from secateur.trainers.TickTock import FINE_TUNE, TICK, TOCK, Phases, TickTock
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from tests.runs.test_run import launch

Assembled = Callable[..., tuple[TickTock, Any]]
TICKTOCK = {"prune_criterion": "GateDecorators", "train_scheme": "TickTock"}


def runs(phases: list[str]) -> list[tuple[str, int]]:
    return [(phase, len(list(each))) for phase, each in groupby(phases)]


def test_seventy_epochs_are_those_of_the_original() -> None:
    assert runs(Phases().phases(70)) == [(TOCK, 10), (TICK, 10), (TOCK, 10), (TICK, 10), (FINE_TUNE, 30)]
    plan = Phases().plan(0.93, 70)
    assert sum(plan.values(), []) == even_targets(0.93) and len(plan) == 20
    assert list(plan) == [*range(10, 20), *range(30, 40)]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [(TICK, 1)]),
        (2, [(TICK, 1), (FINE_TUNE, 1)]),
        (3, [(TOCK, 1), (TICK, 1), (FINE_TUNE, 1)]),
        (4, [(TOCK, 1), (TICK, 1), (FINE_TUNE, 2)]),
        (5, [(TOCK, 1), (TICK, 1), (TOCK, 1), (TICK, 1), (FINE_TUNE, 1)]),
        (10, [(TOCK, 1), (TICK, 1), (TOCK, 1), (TICK, 1), (FINE_TUNE, 6)]),
    ],
)
def test_short_runs_have_all_phases_that_fit(epochs: int, expected: list[tuple[str, int]]) -> None:
    assert runs(Phases().phases(epochs)) == expected


def test_numbers_of_epochs_can_be_chosen() -> None:
    assert runs(Phases(tick=2, tock=3, fine_tune=4).phases(16)) == [
        (TOCK, 5), (TICK, 2), (TOCK, 3), (TICK, 2), (FINE_TUNE, 4)
    ]  # fmt: skip
    assert runs(Phases(tick=2, tock=0, fine_tune=1).phases(5)) == [(TICK, 4), (FINE_TUNE, 1)]


maybe = st.none() | st.integers(1, 30)


@settings(deadline=None)
@given(epochs=st.integers(1, 200), limit=st.floats(0.01, 0.99), tick=maybe, tock=maybe | st.just(0), fine=maybe)
def test_every_run_has_its_epochs_and_meets_its_target_or_says_why_not(
    epochs: int, limit: float, tick: int | None, tock: int | None, fine: int | None
) -> None:
    schedule = Phases(tick, tock, fine)
    if fine is not None and fine >= epochs:
        with pytest.raises(UsageError, match="nothing would be pruned"):
            schedule.plan(limit, epochs)
        return
    phases = schedule.phases(epochs)
    assert len(phases) == epochs and TICK in phases
    if fine is not None:
        assert phases[-fine:] == [FINE_TUNE] * fine and phases.count(FINE_TUNE) == fine
    if epochs > 1 and fine is None:
        assert phases[-1] == FINE_TUNE
    plan = schedule.plan(limit, epochs)
    assert sum(plan.values(), []) == even_targets(limit)
    assert all(phases[moment] == TICK and due for moment, due in plan.items())


def test_no_epochs_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing would be pruned"):
        Phases().plan(0.5, 0)


def test_rising_targets_are_those_of_the_original() -> None:
    assert even_targets(0.93)[:3] == [0.01, 0.06, 0.11] and even_targets(0.93)[-2:] == [0.91, 0.93]
    assert len(even_targets(0.93)) == 20
    assert even_targets(0.21) == [0.01, 0.06, 0.11, 0.16, 0.21]
    assert even_targets(0.005) == [0.005]


class Diary:
    """What each epoch changed, at which learning rates, and the penalty."""

    def __init__(self) -> None:
        self.changed: list[set[str]] = []
        self.rates: list[list[float]] = []
        self.penalties: list[float] = []
        self.pruned_in: list[int] = []

    @hookimpl
    def epoch_started(self, trainer: Any) -> None:
        self.before = {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}
        self.rates.append([])

    @hookimpl
    def gradients_ready(self, trainer: Any) -> None:
        self.rates[-1].append(unwrapped(trainer.optimizer).param_groups[0]["lr"])

    @hookimpl(tryfirst=True)
    def epoch_ended(self, trainer: Any, metrics: dict[str, float]) -> None:
        now = dict(trainer.model.named_parameters())
        self.changed.append({name for name in now if not torch.equal(now[name], self.before[name])})
        self.penalties.append(metrics["penalty/train"])

    @hookimpl
    def pruned(self, trainer: Any) -> None:
        self.pruned_in.append(trainer.epoch)


@pytest.fixture
def told(assembled: Assembled) -> tuple[TickTock, Any, Diary]:
    diary = Diary()
    trainer, pruner = assembled(diary, **TICKTOCK, epochs=6, pruning_limit=0.5, learning_rate=0.01)
    trainer.train()
    return trainer, pruner, diary


def test_each_phase_trains_what_it_should(told: tuple[TickTock, Any, Diary]) -> None:
    trainer, _, diary = told
    assert trainer.phases == [TOCK, TICK, TOCK, TICK, FINE_TUNE, FINE_TUNE]
    layers = prunable_layers(trainer.model)
    last = list(layers)[-1]
    hidden = {f"{name}.{part}" for name in layers for part in ("weight", "bias") if name != last}
    norms = {name for name, module in trainer.model.named_modules() if "BatchNorm" in type(module).__name__}
    gates, shifts = {f"{name}.gate" for name in norms}, {f"{name}.bias" for name in norms}
    head = {f"{last}.weight", f"{last}.bias"}
    for phase, changed in zip(trainer.phases, diary.changed, strict=True):
        assert changed == gates | shifts | head | (hidden if phase != TICK else set())
    assert set(diary.pruned_in) == {1, 3}


def test_the_learning_rate_is_low_in_ticks_and_a_triangle_in_tocks(told: tuple[TickTock, Any, Diary]) -> None:
    _, _, diary = told
    tock, tick, *_, fine = diary.rates
    assert tick == pytest.approx([1e-3] * 3) and fine == pytest.approx([1e-2] * 3)
    assert tock[1] == pytest.approx(1e-2) and tock[0] == pytest.approx(tock[2]) == pytest.approx(4e-3)


def test_only_tocks_have_the_penalty(told: tuple[TickTock, Any, Diary]) -> None:
    trainer, _, diary = told
    assert [penalty > 0 for penalty in diary.penalties] == [phase == TOCK for phase in trainer.phases]
    assert diary.penalties[0] == pytest.approx(226 * 1e-3, rel=0.1)  # gates are near one


def test_the_penalty_is_of_absolute_values_and_has_a_gradient(assembled: Assembled) -> None:
    trainer, _ = assembled(**TICKTOCK)
    norms = gated_norms(trainer.model)
    with torch.no_grad():
        for number, norm in enumerate(norms.values()):
            norm.gate.fill_(-2.0 if number % 2 else 0.5)
    trainer.penalty().backward()
    assert trainer.phase == TOCK
    for number, norm in enumerate(norms.values()):
        assert norm.gate.grad.unique().tolist() == pytest.approx([-1e-3 if number % 2 else 1e-3])
    expected = sum(float(norm.gate.detach().abs().sum()) for norm in norms.values())
    assert float(trainer.penalty().detach()) == pytest.approx(1e-3 * expected)


def test_the_network_is_plain_and_of_the_asked_size_in_the_end(told: tuple[TickTock, Any, Diary]) -> None:
    trainer, pruner, _ = told
    assert not gated_norms(trainer.model) and type(trainer.model.features[1]) is nn.BatchNorm2d
    assert abs(node_sparsity(trainer.model, trainer.example_input) - 0.5) <= 1 / 226
    assert [round(event.asked, 2) for event in pruner.events] == even_targets(0.5)


def test_optimizer_state_is_cut_with_the_network_and_goes_on(assembled: Assembled) -> None:
    seen: list[float] = []

    class Steps:
        @hookimpl
        def epoch_started(self, trainer: Any) -> None:
            state = unwrapped(trainer.optimizer).state
            gates = [norm.gate for norm in gated_norms(trainer.model).values()]
            seen.append(min((float(state[gate]["step"]) for gate in gates if gate in state), default=0.0))
            assert all(state[gate]["exp_avg"].shape == gate.shape for gate in gates if gate in state)

    trainer, _ = assembled(Steps(), **TICKTOCK, epochs=5)
    trainer.train()
    assert seen == [0, 3, 6, 9, 12]


def test_evaluation_runs_in_eval_mode_and_scoring_leaves_the_statistics(assembled: Assembled) -> None:
    trainer, pruner = assembled(**TICKTOCK)
    trainer.train_epoch()
    before = [buffer.clone() for buffer in trainer.model.buffers()]
    assert trainer.evaluate(trainer.loaders.test) == trainer.evaluate(trainer.loaders.test)
    batches = trainer.loaders.scoring_batches("random", batches=2, samples=None, batch_size=8, seed=0, step=0)
    pruner.criterion.score(trainer.model, batches, trainer.loss, None)
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.buffers(), strict=True))


def test_nothing_changes_where_nothing_is_trained(assembled: Assembled) -> None:
    """A network that is loaded, gated and folded back computes what it computed."""
    trainer, _ = assembled(**TICKTOCK)
    with torch.no_grad():
        for norm in gated_norms(trainer.model).values():
            norm.gate.uniform_(-1, 1)
            norm.bias.normal_()
            norm.rest.normal_()
    x = torch.cat([inputs for inputs, _ in trainer.loaders.test])
    with torch.no_grad():
        expected = trainer.model.eval()(x)
        plain = trainer.network()
        torch.testing.assert_close(plain.eval()(x), expected, rtol=1e-4, atol=1e-4)
    assert plain is not trainer.model and gated_norms(trainer.model) and not gated_norms(plain)


@pytest.mark.parametrize("limit", [0.2, 0.5, 0.93])
@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_targets_are_met_within_a_channel_also_in_the_middle_of_a_tick(
    assembled: Assembled, limit: float, epochs: int
) -> None:
    options = {"set": {"trainer": {"keep_share": 0.0}}} if limit > 0.9 else {}
    trainer, pruner = assembled(**TICKTOCK, **options, epochs=epochs, pruning_limit=limit)
    trainer.train()
    assert abs(node_sparsity(trainer.model, trainer.example_input) - limit) <= 1 / 226
    assert pruner.events[-1].asked == limit


def test_the_rest_of_a_tick_fine_tunes_once_the_target_is_reached(assembled: Assembled) -> None:
    options = {"set": {"trainer": {"tick": 6, "tock": 0, "fine_tune": 1}}}
    trainer, pruner = assembled(**TICKTOCK, epochs=7, pruning_limit=0.1, **options)
    assert list(pruner.plan) == [0, 1, 2]  # .01, .06, .1
    assert trainer.phases == [TICK] * 3 + [FINE_TUNE] * 4
    trainer.train()


@pytest.mark.parametrize("criterion", ["SNAP", "ChannelNorm", "SNIP", "EmptyCrit"])
def test_other_criterions_go_with_it(assembled: Assembled, criterion: str) -> None:
    trainer, pruner = assembled(prune_criterion=criterion, train_scheme="TickTock")
    trainer.train()
    assert bool(pruner.events) == (criterion != "EmptyCrit") and not gated_norms(trainer.model)


def test_the_ranking_has_every_channel_once(assembled: Assembled) -> None:
    trainer, pruner = assembled(**TICKTOCK, model="ResNet18")
    batches = trainer.loaders.scoring_batches("random", batches=1, samples=None, batch_size=2, seed=0, step=0)
    scores = pruner.criterion.score(trainer.model, batches, trainer.loss, None)
    stages = 64 + 128 + 256 + 512
    assert sum(map(len, scores.values())) == stages + 2 * stages + 256


SHORT = "--prune_criterion GateDecorators --epochs 3"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return launch(tmp_path_factory.mktemp("ticktock"), *SHORT.split())


def test_the_trainer_is_chosen_for_the_user_and_the_report_tells_of_it(run: Any) -> None:
    assert 'recommended: train_scheme = "TickTock"' in run.out
    report = run.report
    assert report["trainer"] == {"name": "TickTock", "tick": 1, "tock": 1, "fine-tune": 1}
    assert report["reached"]["node_sparsity"] == pytest.approx(0.5, abs=1 / 226)
    assert "GateDecorators, TickTock" in run.out


def test_checkpoints_written_on_the_way_are_plain_and_load(run: Any) -> None:
    for suffix in ("last", "finished"):
        model = run.network(suffix)
        assert type(model.features[1]) is nn.BatchNorm2d
        assert set(model.state_dict()) == {
            name for name in load_model(next(run.folder.models.glob("*_finished*"))).state_dict()
        }


def test_eval_gives_the_accuracy_of_the_report(run: Any) -> None:
    place = run.folder.path.parent.parent
    again = launch(place, "--eval", "--checkpoint_name", run.folder.path)
    assert again.report["accuracy"] == run.report["pruned"]["accuracy"]


def test_the_config_repeats_the_run_bit_for_bit(run: Any, tmp_path: Path) -> None:
    again = launch(tmp_path, "--config", run.folder.config, "--epochs", 3)
    assert again.bytes() == run.bytes() and again.bytes("last") == run.bytes("last")


@pytest.mark.slow
def test_a_residual_network_ends_at_its_target(tmp_path: Path) -> None:
    found = launch(tmp_path, *SHORT.split(), "--model", "ResNet18", "--pruning_limit", "0.85", "--train_dense")
    assert found.report["reached"]["node_sparsity"] == pytest.approx(0.85, abs=2e-3)
    dense = json.loads((found.folder.path / "dense" / "report.json").read_text())
    assert dense["trainer"] == {"name": "DefaultTrainer"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--train_scheme DefaultTrainer", "needs --train_scheme TickTock, not DefaultTrainer"),
        ("--no_autoconfig", "needs --train_scheme TickTock, not DefaultTrainer"),
        ("--set trainer.tick=0", "tick must be a whole number >= 1, got 0"),
        ("--set trainer.fine_tune=3", "of 3 epochs TickTock fine-tunes for 3"),
        ("--set trainer.tock=many", "tock must be a whole number"),
        ("--set trainer.gate_reg=-1", "gate_reg must be a number >= 0"),
        ("--set trainer.tik=2", "did you mean 'tick'?"),
        ("--schedule before", "TickTock determines the schedule: remove --schedule before"),
    ],
)
def test_what_cannot_go_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, said: str
) -> None:
    found = launch(tmp_path, *SHORT.split(), *given.split(), code=2)
    assert said in found.err and found.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_network_without_norms_is_pruned_with_a_warning(tmp_path: Path) -> None:
    plugins = tmp_path / "mine" / "models"
    plugins.mkdir(parents=True)
    (plugins / "NoNorms.py").write_text(
        """from torch import nn


class NoNorms(nn.Sequential):
    def __init__(self, *, in_channels=1, num_classes=10, image_size=28):
        hidden = nn.Linear(in_channels * image_size**2, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU()
        super().__init__(nn.Flatten(), *hidden, nn.Linear(16, num_classes))
"""
    )
    found = launch(tmp_path, *SHORT.split(), "--plugins", tmp_path / "mine", "--model", "NoNorms")
    assert found.report["reached"]["node_sparsity"] == pytest.approx(0.5, abs=1 / 36)
    assert any("no gates to train" in warning for warning in found.report["warnings"])


def test_flags_that_have_no_effect_are_told_of(tmp_path: Path) -> None:
    found = launch(tmp_path, *SHORT.split(), "--prune_delay", 1, "--prune_freq", 1)
    assert "TickTock determines the schedule: prune_delay and prune_freq have no effect" in found.out


def left_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Channels of each layer but the last, now and in the dense LeNet5."""
    dense = {"features.0": 6, "features.4": 16, "features.8": 120, "classifier.1": 84}
    counts = [module.weight.shape[0] for module in prunable_layers(model).values()]
    return dict(zip(dense, zip(counts, dense.values(), strict=False), strict=True))


@pytest.mark.parametrize(("share", "least"), [(None, [1, 2, 12, 9]), (0.25, [2, 4, 30, 21]), (0, [1, 1, 1, 1])])
def test_each_layer_keeps_its_share_and_what_that_costs_is_told(
    assembled: Assembled, share: float | None, least: list[int]
) -> None:
    own = {} if share is None else {"set": {"trainer": {"keep_share": share}}}
    trainer, pruner = assembled(**TICKTOCK, **own, epochs=6, pruning_limit=0.98)
    trainer.train()
    trainer.finish()
    left = [count for count, _ in left_of(trainer.model).values()]
    if share == 0:
        assert all(one >= few for one, few in zip(left, least, strict=True)) and sum(left) < 12
        assert trainer.progress.warnings == []
    else:
        assert left == least
        (warning,) = trainer.progress.warnings
        reached = 1 - sum(least) / 226
        assert f"asked for sparsity 0.9800, reached {reached:.4f}" in warning and "keep_share" in warning


def test_a_limit_within_the_share_is_met_without_a_word(assembled: Assembled) -> None:
    trainer, _ = assembled(**TICKTOCK, epochs=6, pruning_limit=0.8)
    trainer.train()
    left = left_of(trainer.model)
    assert sum(count for count, _ in left.values()) == round(0.2 * 226)
    assert all(count >= 0.1 * dense for count, dense in left.values()) and trainer.progress.warnings == []


@pytest.mark.parametrize("share", [1, -0.1, "much", True])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(UsageError, match="keep_share must be a number >= 0 and < 1"):
        TickTock.check_options(keep_share=share)
