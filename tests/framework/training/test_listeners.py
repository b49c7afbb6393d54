"""Weights followed through training: against the weights of every step, kept and counted one by one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import prune
from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.lineage import lineage_of
from secateur.framework.training.hooks import hookimpl, manager
from secateur.framework.training.listeners import WeightTracker
from tests.networks import ConvNet
from tests.runs.test_run import launch


def of(model: nn.Module) -> Any:
    """A trainer of the model, as far as the tracker reads it."""
    return SimpleNamespace(model=model)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}


def flips_by_hand(values: list[float]) -> int:
    """Sign changes of a row of values; a zero has no sign and changes nothing."""
    signs = [value > 0 for value in values if value != 0]
    return sum(one != two for one, two in zip(signs, signs[1:], strict=False))


def check(tracker: WeightTracker, before: dict[str, Tensor], steps: list[dict[str, Tensor]]) -> None:
    """Compare with the weights before the first step and after each, all of the shapes at the end."""
    found = tracker.tensors()
    assert tracker.steps == len(steps)
    assert set(found) == {f"{name}.{what}" for name in before for what in ("flips", "mean", "variance")}
    for name, first in before.items():
        rows = torch.stack([step[name] for step in steps]).double()
        assert torch.allclose(found[f"{name}.mean"].double(), rows.mean(dim=0), rtol=1e-5, atol=1e-6)
        assert torch.allclose(
            found[f"{name}.variance"].double(), rows.var(dim=0, correction=0), rtol=1e-3, atol=1e-9
        )
        every = torch.cat([first[None].double(), rows]).flatten(1).T.tolist()
        assert found[f"{name}.flips"].flatten().tolist() == [flips_by_hand(row) for row in every]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from([-1.5, -0.25, 0.0, -0.0, 0.5, 2.0]), min_size=4, max_size=4), min_size=2))
def test_flips_mean_and_variance_are_those_of_all_steps_together(rows: list[list[float]]) -> None:
    model = nn.Linear(2, 2)

    def put(row: list[float]) -> dict[str, Tensor]:
        with torch.no_grad():
            model.weight.copy_(torch.tensor(row).view(2, 2))
        return copies(model)

    tracker = WeightTracker()
    before = put(rows[0])
    tracker.run_started(of(model))
    steps = []
    for row in rows[1:]:
        steps.append(put(row))
        tracker.batch_ended(of(model))
    check(tracker, before, steps)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, tracker: WeightTracker) -> list[dict[str, Tensor]]:
    steps = []
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.randint(5, (8,))).backward()
        optimizer.step()
        tracker.batch_ended(of(model))
        steps.append(copies(model))
    return steps


def follow(values: dict[str, Tensor], before: dict[Any, Tensor], after: dict[Any, Tensor]) -> dict[str, Tensor]:
    """The entries of older values that a later cut has left, by the original indices."""
    found = {}
    for name, value in values.items():
        for dim in range(value.dim()):
            if (name, dim) in after:
                old = before.get((name, dim), torch.arange(value.shape[dim])).tolist()
                value = value.index_select(dim, torch.tensor([old.index(i) for i in after[name, dim].tolist()]))
        found[name] = value
    return found


@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("cut_before", [False, True])
def test_what_is_known_of_a_weight_stays_with_it_when_channels_are_cut(cuts: int, cut_before: bool) -> None:
    torch.manual_seed(3)
    model, batch = ConvNet(), (torch.randn(8, 3, 8, 8), torch.randint(5, (8,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    if cut_before:
        prune(model, criterion="SNAP", sparsity=0.2, batches=[batch], optimizer=optimizer)
    tracker = WeightTracker()
    tracker.run_started(of(model))
    history = [copies(model), *train(model, optimizer, tracker)]
    for number in range(cuts):
        old = dict(lineage_of(model).kept)
        prune(model, criterion="SNAP", sparsity=0.4 + 0.2 * number, batches=[batch], optimizer=optimizer)
        tracker.pruned(of(model))
        history = [follow(values, old, lineage_of(model).kept) for values in history]
        history += train(model, optimizer, tracker)
    assert any(flips.any() for name, flips in tracker.tensors().items() if name.endswith("flips"))
    check(tracker, history[0], history[1:])


def test_weights_held_at_zero_flip_no_more() -> None:
    torch.manual_seed(0)
    model, batch = ConvNet(), (torch.randn(8, 3, 8, 8), torch.randint(5, (8,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    prune(model, criterion="SNIP", sparsity=0.6, batches=[batch], optimizer=optimizer)
    tracker = WeightTracker()
    tracker.run_started(of(model))
    before = copies(model)
    check(tracker, before, train(model, optimizer, tracker))
    for name, weight in prunable_weights(model).items():
        assert not tracker.tensors()[f"{name}.flips"][weight == 0].any()


def test_the_summary_adds_up() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    tracker = WeightTracker()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        tracker.run_started(of(model))
        for value in (-1.0, 1.0):
            model[0].weight[0, 0] = value
            tracker.batch_ended(of(model))
    found = tracker.summary()
    assert found["steps"] == 2 and found["flipped"] == 1 / 6 and found["flips"] == 2 / 6
    first = found["layers"]["0.weight"]
    assert first == {"flipped": 0.25, "flips": 0.5, "deviation": pytest.approx(0.5)}  # variances 1, 0, 0, 0
    assert found["layers"]["1.weight"] == {"flipped": 0, "flips": 0, "deviation": 0}


def test_a_weight_that_is_replaced_by_another_is_no_longer_followed_and_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    tracker = WeightTracker()
    tracker.run_started(of(model))
    tracker.batch_ended(of(model))
    model[0], model[1] = nn.Identity(), nn.Linear(4, 2)
    tracker.batch_ended(of(model))
    assert tracker.summary()["lost"] == ["0.weight", "1.weight"]
    assert list(tracker.summary()["layers"]) == ["2.weight"]


def test_a_jump_back_by_rewinding_is_no_flip() -> None:
    model = nn.Linear(2, 1, bias=False)
    tracker = WeightTracker()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0]]))
        tracker.run_started(of(model))
        model.weight.copy_(torch.tensor([[-1.0, 1.0]]))
        tracker.batch_ended(of(model))  # one flip
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
        manager([tracker]).hook.rewound(trainer=SimpleNamespace(model=model), to_epoch=0)
        model.weight.copy_(torch.tensor([[2.0, -2.0]]))
        tracker.batch_ended(of(model))
    assert tracker.tensors()["weight.flips"].tolist() == [[1, 0]]


def test_no_step_leaves_zeros_and_no_division_by_zero() -> None:
    tracker = WeightTracker()
    tracker.run_started(of(nn.Linear(2, 2)))
    assert tracker.summary()["flips"] == 0 and not tracker.tensors()["weight.variance"].any()


class Keeper:
    """Keeps the weights after every step, as a listener of the run."""

    def __init__(self) -> None:
        self.values: list[dict[str, Tensor]] = []
        self.kept: dict[Any, Tensor] = {}

    @hookimpl(trylast=True)
    def run_started(self, trainer: Any) -> None:
        self.kept = dict(lineage_of(trainer.model).kept)
        self.values = [copies(trainer.model)]

    @hookimpl
    def batch_ended(self, trainer: Any) -> None:
        self.values.append(copies(trainer.model))

    @hookimpl
    def pruned(self, trainer: Any) -> None:
        kept = lineage_of(trainer.model).kept
        self.values = [follow(values, self.kept, kept) for values in self.values]
        self.kept = dict(kept)


@pytest.mark.parametrize(
    "criterion", ["SNAPitDuring", *(pytest.param(one, marks=pytest.mark.slow) for one in ("SNAP", "SNIPitDuring"))]
)
def test_a_run_leaves_the_file_the_rows_and_the_same_network(
    criterion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.framework.commands import train

    keeper = Keeper()
    plain = train.manager
    monkeypatch.setattr(train, "manager", lambda listeners, **rest: plain([*listeners, keeper], **rest))
    flags = ("--prune_criterion", criterion, "--epochs", "4", "--model", "LeNet300", "--optimizer", "SGD",
             "--learning_rate", "0.5")  # fmt: skip
    flags += ("--prune_freq", "1") if "During" in criterion else ()
    run = launch(tmp_path, *flags, "--track_weights")
    told = run.report["tracked_weights"]
    assert told["steps"] == 12 == len(keeper.values) - 1
    tracker = WeightTracker()
    tensors = load_file(run.folder.tracked)
    monkeypatch.setattr(tracker, "tensors", lambda: tensors)
    tracker.steps = 12
    check(tracker, keeper.values[0], keeper.values[1:])
    with safe_open(run.folder.tracked, framework="pt") as file:
        assert file.metadata() == {"steps": "12"}
    flips = torch.cat([tensor.flatten() for name, tensor in tensors.items() if name.endswith(".flips")])
    assert told["flips"] == pytest.approx(float(flips.float().mean()))
    assert told["flipped"] == pytest.approx(float((flips > 0).float().mean())) and told["flipped"] > 0
    assert set(told["layers"]) == set(prunable_weights(run.network()))
    assert launch(tmp_path, *flags).bytes() == run.bytes()
