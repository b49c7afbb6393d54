"""Scores averaged over the last training batches, weighed element scores, and what else goes on beside pruning."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Data
from secateur.framework.pruning.scoring.weighted import weighted
from secateur.framework.pruning.steps.averages import RunningScores, Tracking
from secateur.framework.pruning.steps.by_schedule import AtMoments
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.training.hooks import hookimpl
from secateur.framework.training.listeners import GroupDecay, PruningRate
from secateur.framework.training.trainer import Trainer
from secateur.utils.errors import RunError, UsageError
from secateur.utils.loading.loaders import make_loaders
from secateur.utils.optimizers import unwrapped
from tests.networks import ConvNet, same, seeded
from tests.short_runs import Blobs, trained


@given(
    alpha=st.floats(0.01, 1),
    rows=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=8),
)
def test_the_running_score_is_a_mean_whose_weights_add_up_to_one(alpha: float, rows: list[list[float]]) -> None:
    scores = torch.tensor(rows, dtype=torch.float64)
    running = RunningScores(alpha)
    for row in scores:
        running.add({"a": row})
    weights = torch.tensor([alpha * (1 - alpha) ** age for age in reversed(range(len(rows)))], dtype=torch.float64)
    expected = (weights[:, None] * scores).sum(0) / weights.sum()
    assert torch.allclose(running.value()["a"], expected, atol=1e-9)


def test_scores_that_do_not_change_are_not_shrunk_however_few_the_batches() -> None:
    running = RunningScores(0.3)
    for _ in range(3):
        running.add({"a": torch.tensor([1.0, torch.inf])})
        assert torch.allclose(running.value()["a"], torch.tensor([1.0, torch.inf]))


def test_a_pruning_without_any_scored_batch_is_an_error_and_no_fresh_estimate() -> None:
    with pytest.raises(RunError, match="no batch was scored"):
        RunningScores(0.8).value()


@pytest.mark.parametrize(
    ("batches", "alpha", "words"),
    [(0, 0.5, "batches must .* got 0"), (3, 0.0, "alpha must .* got 0.0"), (3, 1.5, "alpha must .* got 1.5")],
)
def test_impossible_tracking_is_refused(batches: int, alpha: float, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        Tracking(batches, alpha)
    assert raised.value.argument == words.split()[0]


class Spy:
    """What a criterion scored, batch by batch, and the network before each pruning."""

    def __init__(self, criterion: Any) -> None:
        self.criterion, self.calls = criterion, []  # type: ignore[var-annotated]
        self.before: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._score, criterion.score = criterion.score, self._noted

    def _noted(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> Any:
        batches = list(batches)
        found = self._score(model, batches, loss, groups)
        self.calls.append((batches, {name: one.clone() for name, one in found.items()}))
        return found

    @hookimpl(trylast=True)
    def gradients_ready(self, trainer: Trainer) -> None:
        """The rate that the step will have."""
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """The losses of training."""
        self.losses.append(float(loss))

    @hookimpl(tryfirst=True)
    def epoch_ended(self, trainer: Trainer) -> None:
        """Before any pruning."""
        self.before.append(copy.deepcopy(trainer.model.state_dict()))


@pytest.mark.parametrize("criterion", ["LossBased", "SNIP", "ChannelNorm", "GraspChannel"])
@pytest.mark.parametrize("count", [2, 4, 20])
def test_the_scores_of_the_last_batches_before_the_moment_take_the_place_of_a_fresh_one(
    criterion: str, count: int
) -> None:
    found = build("criterions", criterion)
    spy, pruner = Spy(found), AtMoments(found, {1: [0.5]}, tracking=Tracking(count, 0.6))
    trained(pruner, [spy])
    assert len(spy.calls) == min(count, 6)  # two epochs of three batches
    expected = RunningScores(0.6)
    for batches, scores in spy.calls:
        assert len(batches) == (0 if criterion == "ChannelNorm" else 1)
        expected.add(scores)
    assert same(pruner.events[0].scores, {name: one.float() for name, one in expected.value().items()})


def test_tracking_changes_nothing_but_the_scores() -> None:
    plain, tracked = build("criterions", "TaylorGate"), build("criterions", "TaylorGate")
    one, two = Spy(plain), Spy(tracked)
    first = trained(AtMoments(plain, {1: [0.5]}), [one])
    second = trained(AtMoments(tracked, {1: [0.5]}, tracking=Tracking(3)), [two])
    assert same(one.before[0], two.before[0]) and same(one.before[1], two.before[1])
    assert first.progress.samples == second.progress.samples
    again = build("criterions", "TaylorGate")
    third = trained(AtMoments(again, {1: [0.5]}, tracking=Tracking(3)), [Spy(again)])
    assert same(second.model.state_dict(), third.model.state_dict())


@pytest.mark.parametrize(("criterion", "passes"), [("TaylorGate", 20), ("ChannelNorm", 0), ("GraspChannel", 60)])
def test_what_tracking_costs_is_counted(criterion: str, passes: int) -> None:
    def spent(tracking: Tracking | None) -> int:
        found = build("criterions", criterion)
        found.__dict__["data"] = Data(found.data.kind, samples=10) if found.data.kind != "none" else found.data
        pruner = AtMoments(found, {2: [0.0]}, tracking=tracking)
        trainer = trained(pruner, epochs=3)
        return trainer.progress.cumulative_macs // (3 * trainer.macs)

    fresh = {"TaylorGate": 10, "ChannelNorm": 0, "GraspChannel": 30}[criterion]
    assert spent(None) == 90 + fresh
    assert spent(Tracking(2)) == 90 + passes


@pytest.mark.parametrize("optimizer", ["SGD", "ADAM"])
@pytest.mark.parametrize("keep", [True, False])
def test_the_optimizers_state_survives_a_pruning_unless_it_is_to_start_anew(keep: bool, optimizer: str) -> None:
    class Witness:
        kept = -1

        @hookimpl(trylast=True)
        def epoch_ended(self, trainer: Trainer) -> None:
            if trainer.epoch == 1:
                self.kept = len(unwrapped(trainer.optimizer).state)

    pruner, witness = AtMoments(build("criterions", "MagBased"), {1: [0.5]}, preserve_moment=keep), Witness()
    trainer = trained(pruner, [witness], optimizer=optimizer)
    assert witness.kept == (len(list(trainer.model.parameters())) if keep else 0)


def test_the_epochs_of_the_rounds_have_a_learning_rate_of_their_own_and_the_schedule_goes_on() -> None:
    found = build("criterions", "MagBased")
    spy = Spy(found)
    trained(AtMoments(found, {1: [0.3], 2: [0.5]}), [PruningRate(0.2), spy], epochs=4)
    assert spy.rates == pytest.approx([0.01] * 3 + [0.2] * 6 + [0.00125] * 3)


def test_every_filter_loses_the_same_length_and_none_passes_zero() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleDict(
        {"conv": nn.Conv2d(3, 6, 3), "up": nn.ConvTranspose2d(4, 5, 2), "line": nn.Conv1d(2, 3, 3),
         "fc": nn.Linear(3, 2)}
    ).double()  # fmt: skip
    with torch.no_grad():
        layers["conv"].weight[0] *= 1e-3
        layers["conv"].weight[1] = 0
    before = copy.deepcopy(layers)
    length = 0.05
    GroupDecay(length).batch_ended(cast("Trainer", SimpleNamespace(model=layers)))
    for name, dim in (("conv", 0), ("up", 1), ("line", 0)):
        old = before[name].weight.detach().movedim(dim, 0).flatten(1)
        new = layers[name].weight.detach().movedim(dim, 0).flatten(1)
        for one, other in zip(old, new, strict=True):
            norm = float(one.norm())
            assert float(other.norm()) == pytest.approx(max(0.0, norm - length), abs=1e-12)
            assert torch.allclose(other * norm, one * max(0.0, norm - length))  # the same direction
    assert layers["conv"].weight[:2].count_nonzero() == 0
    assert torch.equal(layers["conv"].bias, before["conv"].bias)
    assert torch.equal(layers["fc"].weight, before["fc"].weight)


def test_the_filters_shrink_after_each_step_of_the_optimizer() -> None:
    def last(*listeners: Any) -> Tensor:
        never = Pruner(build("criterions", "EmptyCrit"), {})
        model = trained(never, listeners, epochs=1, optimizer="SGD").model
        weight = model.get_parameter("a.weight").detach()
        return weight

    assert float(last(GroupDecay(10.0)).abs().max()) == 0.0
    assert torch.equal(last(GroupDecay(0.0)), last())


def test_the_temperature_divides_the_logits_in_training_and_not_in_evaluation() -> None:
    spies = {}
    for temperature in (1.0, 4.0):
        found = build("criterions", "EmptyCrit")
        spies[temperature] = Spy(found)
        trainer = trained(Pruner(found, {}), [spies[temperature]], epochs=1, temperature=temperature)
        model, batches = trainer.model.eval(), list(trainer.loaders.test)
        with torch.no_grad():
            total = sum(float(F.cross_entropy(model(x), y)) * len(y) for x, y in batches)
        assert trainer.evaluate(trainer.loaders.test)["loss"] == pytest.approx(total / 10, rel=1e-5)
    loaders = make_loaders(Blobs(), batch_size=10, seed=0, val_share=0.25)
    loaders.train.epoch = 0
    inputs, targets = next(iter(loaders.train))
    logits = seeded(ConvNet).train()(inputs).detach()
    for temperature, spy in spies.items():
        assert spy.losses[0] == pytest.approx(float(F.cross_entropy(logits / temperature, targets)), rel=1e-5)


Case = tuple[nn.Module, list[tuple[Tensor, Tensor]], Any]


def case() -> Case:
    model = seeded(ConvNet).double()
    generator = torch.Generator().manual_seed(3)
    batch = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(6) % 5
    return model, [batch], free_groups(channel_groups(model, batch[0]))


def by_hand(model: nn.Module, batch: tuple[Tensor, Tensor], temperature: float, factor: Any) -> dict[str, Tensor]:
    twin = copy.deepcopy(model).eval()
    F.cross_entropy(twin(batch[0]) / temperature, batch[1]).backward()
    weights = {name: twin.get_parameter(f"{name}.weight") for name in "abc"}
    return {
        name: ((one * one.grad).abs() * factor(name, one)).flatten(1).sum(1).detach().float()
        for name, one in weights.items()
    }


def test_use_l2_weighs_each_weights_score_by_its_size_before_they_are_added_up() -> None:
    model, batches, groups = case()
    plain = build("criterions", "LossBased")
    found = weighted(plain, by_size=True).score(model, batches, F.cross_entropy, groups)
    expected = by_hand(model, batches[0], 5.0, lambda _, w: w.abs())
    assert list(found) == list(groups) and all(torch.allclose(found[name], expected[name]) for name in "abc")
    other = build("criterions", "BiasedLossTracked", use_l2=True).score(model, batches, F.cross_entropy, groups)
    assert all(torch.allclose(found[name], other[name]) for name in other)
    assert weighted(plain, by_size=True).name == "LossBased" and weighted(plain) is plain


def test_use_init_weighs_by_the_way_from_where_the_run_began() -> None:
    model, batches, groups = case()
    criterion = weighted(build("criterions", "LossBased"), by_way=True)
    criterion.start(model)
    start = copy.deepcopy(model)
    with pytest.raises(UsageError, match="LossBased: use_init: the weights equal the initial weights"):
        criterion.score(model, batches, F.cross_entropy, groups)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.sin(100 * parameter), alpha=0.1)
    found = criterion.score(model, batches, F.cross_entropy, groups)
    moved = {name: model.get_parameter(f"{name}.weight") - start.get_parameter(f"{name}.weight") for name in "abc"}
    expected = by_hand(model, batches[0], 5.0, lambda name, _: moved[name].abs())
    assert all(torch.allclose(found[name], expected[name]) for name in "abc")


def test_both_weights_go_together_with_a_criterion_that_takes_one_by_itself() -> None:
    model, batches, groups = case()
    criterion = weighted(build("criterions", "BiasedLossTracked", use_l2=True), by_way=True)
    criterion.start(model)
    start = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    found = criterion.score(model, batches, F.cross_entropy, groups)
    ways = {
        name: (model.get_parameter(f"{name}.weight") - start.get_parameter(f"{name}.weight")) for name in "abc"
    }
    expected = by_hand(model, batches[0], 5.0, lambda name, w: w.abs() * ways[name].abs())
    assert all(torch.allclose(found[name], expected[name]) for name in "abc")


@pytest.mark.parametrize("criterion", ["TaylorGate", "SNAP", "MagBased", "TFO", "NvidiaFisher"])
def test_a_criterion_without_scores_of_weights_refuses_to_weigh_them(criterion: str) -> None:
    with pytest.raises(UsageError, match=f"use_l2: {criterion} has no scores of"):
        weighted(build("criterions", criterion), by_size=True)
