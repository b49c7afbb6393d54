"""Pruning every few batches where weights are ranked: exact numbers, averages by hand, channels beside weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import weight_sparsity
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Criterion, Data
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.by_schedule import pruner_for
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl
from secateur.framework.training.trainer import Trainer
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, ResNet, seeded
from tests.short_runs import trained

WEIGHTS = {name: weight.shape for name, weight in prunable_weights(seeded(ConvNet)).items()}
TOTAL = sum(shape.numel() for shape in WEIGHTS.values())


class Drawn(Criterion):
    """Scores of weights that were drawn beforehand, for each call."""

    granularity = "weight"
    data = Data("random", batches=1)

    def __init__(self, calls: int = 40) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.calls = 0
        self.table = [
            {name: torch.rand(shape, generator=generator) for name, shape in WEIGHTS.items()} for _ in range(calls)
        ]

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        """The next ones."""
        self.calls += 1
        return self.table[self.calls - 1]


class Log:
    """Masks and numbers after each pruning, and warnings."""

    def __init__(self) -> None:
        self.off: list[dict[str, Tensor]] = []
        self.events: list[PruneEvent] = []
        self.warnings: list[str] = []

    @hookimpl
    def pruned(self, trainer: Trainer, event: PruneEvent) -> None:
        """What is masked now."""
        masks = Masks(trainer.model)
        self.off.append({name: masks[name].flatten() == 0 for name in WEIGHTS if name in masks})
        self.events.append(event)

    @hookimpl
    def warned(self, message: str) -> None:
        """Keep it."""
        self.warnings.append(message)


def run(criterion: Criterion, limit: float = 0.5, epochs: int = 4, **schedule: Any) -> tuple[Trainer, Log]:
    log = Log()
    pruner = pruner_for(criterion, Iterative(**schedule), limit, epochs)
    return trained(pruner, [log], epochs=epochs), log


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([scores[name].flatten() for name in WEIGHTS])


def test_the_lowest_weights_by_averaged_scores_go_in_exact_numbers() -> None:
    criterion = Drawn()
    trainer, log = run(criterion, frequency=3, per_step=20, maximum=3, momentum=0.6)
    means = [torch.stack([flat(one) for one in criterion.table[at : at + 3]]).mean(0) for at in (0, 3, 6)]
    assert criterion.calls == 9
    gone: set[int] = set()
    scores = means[0]
    for step, off in enumerate(log.off):
        scores = scores if step == 0 else 0.6 * scores + 0.4 * means[step]
        left = [at for at in scores.argsort(stable=True).tolist() if at not in gone]
        gone |= set(left[:20])
        assert set(flat(off).nonzero().flatten().tolist()) == gone
    assert len(log.off) == 3 and not log.warnings
    weights = torch.cat([weight.flatten() for weight in prunable_weights(trainer.model).values()])
    assert not weights[sorted(gone)].any() and int((weights == 0).sum()) == 60  # none has come back


@pytest.mark.parametrize("most", [0, 7, 50])
def test_never_more_than_asked_in_all(most: int) -> None:
    _, log = run(Drawn(), frequency=2, per_step=20, most=most)
    assert sum(event.removed for event in log.events) == most
    assert all((event.asked, event.number) == (None, event.removed) for event in log.events)
    assert all(event.removed <= 20 for event in log.events)


def test_without_bounds_the_limit_ends_it_and_it_is_met_to_the_weight() -> None:
    trainer, log = run(Drawn(), limit=0.1, frequency=1, per_step=30)
    assert [event.removed for event in log.events[:-1]] == [30] * (len(log.events) - 1)
    assert sum(event.removed for event in log.events) == round(0.1 * TOTAL)
    assert weight_sparsity(trainer.model) == pytest.approx(round(0.1 * TOTAL) / TOTAL)


def test_without_numbers_the_limit_is_met_in_equal_parts() -> None:
    _, log = run(Drawn(), limit=0.6, frequency=2, maximum=3)
    assert [event.asked for event in log.events] == pytest.approx([0.2, 0.4, 0.6])
    assert sum(event.removed for event in log.events) == round(0.6 * TOTAL)


def test_layers_are_compared_by_scores_over_their_norm_where_that_is_asked_for() -> None:
    criterion = Drawn()
    first = next(iter(WEIGHTS))
    for table in criterion.table:
        table[first] = table[first] * 1e-4  # alone the lowest
    _, plain = run(criterion, frequency=3, per_step=20, maximum=1)
    assert int(plain.off[0][first].sum()) == 20
    criterion.calls = 0
    _, normed = run(criterion, frequency=3, per_step=20, maximum=1, l2_per_layer=True)
    mean = {name: torch.stack([one[name] for one in criterion.table[:3]]).mean(0) for name in WEIGHTS}
    scores = flat({name: score / score.norm() for name, score in mean.items()})
    assert set(flat(normed.off[0]).nonzero().flatten().tolist()) == set(scores.argsort()[:20].tolist())


def test_no_step_while_the_loss_is_too_high_and_that_is_told() -> None:
    _, log = run(Drawn(), frequency=2, maximum=2, loss_limit=0.0)
    assert not log.events
    assert log.warnings == ["Drawn: training ended after 0 of 2 steps of 2 batches, 0 weights were pruned"]


class Marked(Criterion):
    """Of weights and channels; a weight's score is its place in the dense network, so that a cut can be told."""

    granularity = "both"
    data = Data("random", batches=1)

    def __init__(self) -> None:
        super().__init__()
        self.places = {
            name: torch.arange(shape.numel()).view(shape).float() + 1000 for name, shape in WEIGHTS.items()
        }

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        """Channels of even position go first, then the first weights; places are read off kernels of the model."""
        found = {name: self.places[name].clone() for name in WEIGHTS}
        for name, group in groups.items():
            found[name] = torch.where(group.origin % 2 == 0, 1.0 + group.origin, 1e6)
        for name, weight in prunable_weights(model).items():
            if weight.shape != found[name].shape:  # after a cut: what the slices of the groups say is left
                raise AssertionError("scored after the step that was the last to score")
        return found


def test_averages_of_weights_are_cut_along_with_the_network() -> None:
    """Scores are frozen at the first step: what the second ranks has to fit the smaller network."""
    trainer, log = run(Marked(), limit=0.6, frequency=3, maximum=2, fixed_criteria=True)
    assert len(log.events) == 2 and log.events[0].kept_indices
    second = log.events[1].scores
    weights = prunable_weights(trainer.model)
    step_two = {name: tuple(second[name].shape) for name in weights}
    assert step_two != {name: tuple(shape) for name, shape in WEIGHTS.items()}
    dense = Marked().places
    for name, dims in log.events[0].kept_indices.items():
        if name in weights:
            expected = dense[name]
            for dim, index in dims.items():
                expected = expected.index_select(dim, index)
            assert torch.equal(second[name], expected)
    assert weight_sparsity(trainer.model) == pytest.approx(0.6, abs=0.02)


def test_a_fixed_threshold_takes_what_is_below_it_at_each_step_and_says_so_if_nothing_is() -> None:
    criterion = Drawn()
    criterion.threshold = 0.25
    _, log = run(criterion, frequency=3, maximum=1)
    mean = torch.stack([flat(one) for one in criterion.table[:3]]).mean(0)
    assert [event.removed for event in log.events] == [int((mean <= 0.25).sum())]
    assert log.events[0].asked is None
    criterion = Drawn()
    criterion.threshold = -1.0
    _, log = run(criterion, frequency=3, maximum=1)
    assert "nothing was pruned, no score is below the threshold -1" in log.warnings[-1]


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("SNIP", {"group_size": 2}, "group_size cannot be combined with SNIP, which prunes weights"),
        ("SNIP", {"fixed_layer": 0}, "fixed_layer cannot be combined with SNIP"),
        ("SNIP", {"flops": 1.0}, "flops cannot be combined with SNIP"),
        ("CNIP", {"per_step": 3}, "cannot be combined with CNIP, which ranks weights and channels together"),
        ("HoyerSquare", {"most": 3}, "most cannot be combined with HoyerSquare"),
        (
            "HoyerSquare",
            {"l2_per_layer": True},
            "l2_per_layer cannot be combined with HoyerSquare",
        ),
        (
            "Wanda",
            {"per_step": 3},
            "per_step prunes the lowest of all weights: Wanda needs the scope global",
        ),
    ],
)
def test_what_has_no_meaning_for_weights_is_refused(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pruner_for(build("criterions", name), Iterative(**fields), 0.5, 3)


def test_numbers_do_not_go_with_weights_that_grow_again() -> None:
    with pytest.raises(UsageError, match="most cannot be combined with masking=False"):
        pruner_for(build("criterions", "SNIP"), Iterative(most=9), 0.5, 3, masking=False)
    assert pruner_for(build("criterions", "Wanda"), Iterative(most=9), 0.5, 3, options=PruneOptions("global"))


@pytest.mark.parametrize("most", [None, 5000])
def test_more_than_there_is_goes_as_far_as_it_can_and_warns(most: int | None) -> None:
    trainer, log = run(Drawn(), frequency=2, per_step=700, maximum=3, most=most)
    assert [event.removed for event in log.events] == [700, TOTAL - 700] + [0] * (len(log.events) - 2)
    assert weight_sparsity(trainer.model) == 1.0
    missing = 2 * 700 - TOTAL
    assert log.warnings[0] == (
        f"Drawn: in step 2 {missing} weights fewer than requested were pruned: the remaining weights are protected"
    )


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", ["TaylorGate", "GroupHoyerSquare"])
def test_a_layer_may_go_as_a_whole_between_two_steps(name: str, fixed: bool) -> None:
    criterion = build("criterions", name)
    if criterion.threshold is not None:
        criterion.threshold = 0.5
    schedule = Iterative(frequency=2, maximum=4, fixed_criteria=fixed)
    pruner = pruner_for(criterion, schedule, 0.98, 4, options=PruneOptions(min_channels=0))
    model = seeded(ResNet)
    groups = len(free_groups(channel_groups(model, torch.zeros(1, 3, 8, 8))))
    trained(pruner, epochs=4, model=model)
    assert len(free_groups(pruner.groups)) < groups and pruner._done == 4  # type: ignore[attr-defined]
