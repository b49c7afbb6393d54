"""Pruning every few batches: exact counts, averages by hand, floors, sets of channels and multiply-adds."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import Iterative
from secateur.framework.network.size import count_macs
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups, node_sparsity
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Criterion, Data
from secateur.framework.pruning.selection.budgets import Macs
from secateur.framework.pruning.selection.channel_ranking import ChannelRanking
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.averages import Averages
from secateur.framework.pruning.steps.by_schedule import EveryNBatches, pruner_for
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.training.hooks import hookimpl
from secateur.framework.training.trainer import Trainer
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from tests.networks import ConvNet, images, same, seeded, shipped
from tests.short_runs import trained

UNITS = {"a": 6, "b": 8, "c": 10}  # of ConvNet


class Made(Criterion):
    """Scores that a test makes up: from the number of the call, and the channel's original index."""

    granularity = "channel"
    data = Data("random", batches=1)

    def __init__(self, make: Any = None) -> None:
        super().__init__()
        self.make = make or (lambda call, name, origin: torch.zeros(len(origin)))
        self.calls = 0
        self.seen: list[Tensor] = []

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        """Also notes the inputs."""
        self.calls += 1
        self.seen += [inputs.clone() for inputs, _ in batches]
        return {name: self.make(self.calls, name, group.origin).float() for name, group in groups.items()}


class Log:
    """What training saw: batches, phases, and the channels left after each pruning."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.phases: list[str] = []
        self.left: list[tuple[int, dict[str, list[int]]]] = []
        self.warnings: list[str] = []
        self.moments: list[int] = []
        self.pruner: Pruner

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """The batch of this step."""
        assert trainer.batch is not None
        self.inputs.append(trainer.batch[0].clone())

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """The phase that its row has."""
        self.phases.append(trainer.progress.phase)

    @hookimpl
    def pruned(self, trainer: Trainer) -> None:
        """Original indices that are left."""
        groups = free_groups(self.pruner.groups)
        self.left.append((trainer.progress.step, {name: one.origin.tolist() for name, one in groups.items()}))

    @hookimpl
    def warned(self, message: str) -> None:
        """Keep it."""
        self.warnings.append(message)


def run(
    criterion: Criterion,
    limit: float = 0.5,
    epochs: int = 4,
    options: PruneOptions | None = None,
    **schedule: Any,
) -> tuple[Trainer, Log, Pruner]:
    pruner = pruner_for(criterion, Iterative(**schedule), limit, epochs, options=options)
    log = Log()
    log.pruner = pruner
    return trained(pruner, [log], epochs=epochs), log, pruner


def gone(log: Log) -> list[int]:
    return [24 - sum(map(len, left.values())) for _, left in log.left]


def test_equal_scores_go_in_order_and_in_exact_numbers() -> None:
    """All scores are equal: a threshold would take all channels of the network at once."""
    _, log, _ = run(Made(), frequency=3, per_step=4, maximum=3)
    assert [step for step, _ in log.left] == [3, 6, 9]
    assert gone(log) == [4, 8, 12]
    assert log.left[0][1] == {"a": [4, 5], "b": list(range(8)), "c": list(range(10))}
    assert log.left[1][1] == {"a": [5], "b": list(range(3, 8)), "c": list(range(10))}  # the last of a stays
    assert log.left[2][1] == {"a": [5], "b": [7], "c": list(range(10))}


@settings(max_examples=8, deadline=None)
@given(
    per_step=st.integers(1, 30), most=st.integers(0, 30), floor=st.integers(1, 7), size=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_never_more_than_asked_in_a_step_or_in_all_and_never_a_whole_layer(
    per_step: int, most: int, floor: int, size: int, seed: int
) -> None:
    per_step = max(per_step, size)
    torch.manual_seed(seed)
    table = {name: torch.randint(0, 3, (count,)).float() for name, count in UNITS.items()}
    criterion = Made(lambda _, name, origin: table[name][origin])
    _, log, pruner = run(
        criterion, frequency=2, per_step=per_step, most=most, group_size=size,
        options=PruneOptions(min_channels=floor),
    )  # fmt: skip
    counts = [0, *gone(log)]
    assert all(after - before <= per_step for before, after in zip(counts, counts[1:], strict=False))
    assert counts[-1] <= most
    left = {name: group.channels for name, group in free_groups(pruner.groups).items()}
    assert all(left[name] >= min(floor, count) for name, count in UNITS.items())
    able = sum(max(0, count - floor) for count in UNITS.values())
    if size == 1 and log.left:
        assert counts[1] == min(per_step, most, able)


def test_scores_are_those_of_the_training_batches_averaged_and_then_with_momentum_over_the_steps() -> None:
    table = torch.rand(40, 10, generator=torch.Generator().manual_seed(1))
    criterion = Made(lambda call, name, origin: table[call, origin])
    _, log, pruner = run(criterion, frequency=3, per_step=2, maximum=3, momentum=0.6)
    assert criterion.calls == 9  # nothing is scored after the last step
    assert all(torch.equal(one, other) for one, other in zip(criterion.seen, log.inputs, strict=False))
    means = [table[1 + 3 * step : 4 + 3 * step].mean(0) for step in range(3)]
    scores = means[0]
    alive = {name: list(range(count)) for name, count in UNITS.items()}
    for step in range(3):
        scores = scores if step == 0 else 0.6 * scores + 0.4 * means[step]
        units = [(float(scores[index]), position, name, index) for position, name in enumerate(alive)
                 for index in alive[name]]  # fmt: skip
        for _, _, name, index in sorted(units)[:2]:
            alive[name].remove(index)
        assert log.left[step][1] == alive
    assert len(pruner.events) == 3 and pruner.events[-1].number == 2


def test_a_real_score_is_taken_with_the_weights_of_now_and_leaves_training_as_it_is() -> None:
    plain = build("criterions", "EmptyCrit")
    pruner = pruner_for(build("criterions", "TaylorGate"), Iterative(frequency=4, per_step=0, most=0), 0.5, 2)
    scored = trained(pruner, epochs=2)
    unscored = trained(Pruner(plain, {}), epochs=2)
    assert same(scored.model.state_dict(), unscored.model.state_dict())
    assert pruner.events == []


@pytest.mark.parametrize(("criterion", "passes"), [("TaylorGate", 60), ("MagBased", 0), ("BNWeight", 0)])
def test_every_scored_batch_is_counted_and_a_criterion_without_data_costs_nothing(
    criterion: str, passes: int
) -> None:
    found = build("criterions", criterion)
    pruner = pruner_for(found, Iterative(frequency=3, per_step=0, maximum=2), 0.5, 3)
    trainer = trained(pruner, epochs=3)  # 90 samples; scored until step 2, after 6 batches of 10
    assert trainer.progress.cumulative_macs == 3 * trainer.macs * (90 + passes)


@pytest.mark.parametrize(
    "criterion", ["TaylorGate", "MagBased", "LossBased", "SNAP", "GraspChannel", "RandomChannel"]
)
def test_the_limit_is_met_in_equal_steps_over_the_first_half(criterion: str) -> None:
    trainer, log, pruner = run(build("criterions", criterion), limit=0.5, epochs=4, frequency=2)
    assert [step for step, _ in log.left] == [2, 4, 6]
    assert gone(log) == [4, 8, 12]
    assert node_sparsity(trainer.model, trainer.example_input) == 0.5
    assert [event.asked for event in pruner.events] == pytest.approx([1 / 6, 1 / 3, 0.5])


def test_a_short_run_has_room_for_several_steps_unless_it_is_told_how_often() -> None:
    assert Iterative(frequency=None).steps(1000) == (30, 16)
    assert Iterative(frequency=None).steps(430) == (30, 7)
    assert Iterative(frequency=None).steps(40) == (4, 5)
    assert Iterative(frequency=None).steps(3) == (1, 1)
    assert Iterative(frequency=10).steps(10) == (10, 1)
    assert Iterative(frequency=10, maximum=7).steps(100) == (10, 7)
    assert Iterative(frequency=10, start=8).steps(100) == (10, 8)
    assert Iterative(frequency=30, per_step=5).steps(3) == (30, None)
    with pytest.raises(UsageError, match="after 30 batches .frequency 30., and the run has 29"):
        Iterative().steps(29)


def test_numbers_of_channels_without_a_bound_go_on_until_the_limit() -> None:
    trainer, log, pruner = run(Made(lambda _, name, origin: origin), limit=0.5, frequency=2, per_step=5)
    assert gone(log) == [5, 10, 12]
    assert node_sparsity(trainer.model, trainer.example_input) == 0.5
    assert [event.number for event in pruner.events] == [5, 5, None]
    assert log.phases == ["pruning", "pruning", "final", "final"]


def test_only_the_fixed_layer_is_ranked_and_pruned() -> None:
    """The zeros of the other layers must not count."""
    _, log, _ = run(
        Made(lambda _, name, origin: 1.0 + origin if name == "b" else torch.zeros(len(origin))),
        frequency=2, per_step=3, maximum=2, fixed_layer=1,
    )  # fmt: skip
    assert log.left[-1][1] == {"a": list(range(6)), "b": [6, 7], "c": list(range(10))}
    with pytest.raises(UsageError, match=r"fixed_layer 3: ConvNet has 3 layers to prune, 0 to 2 \(a, b, c\)"):
        run(Made(), frequency=2, per_step=3, fixed_layer=3)


def test_sets_of_channels_are_neighbours_in_their_layers_order_and_have_the_mean_of_their_scores() -> None:
    table = {"a": [5.0, 1, 9, 2, 8, 7], "b": [3.0] * 8, "c": [50.0] * 10}
    model = seeded(ConvNet)
    groups = free_groups(channel_groups(model, images()))
    scores = {name: torch.tensor(values) for name, values in table.items()}
    ranking = ChannelRanking(model, groups, scores, PruneOptions(group_size=2))
    ends = list(ranking.ends)
    # of a 5 may go, lowest first: 1 (index 1) and 2 (3), mean 1.5; 5 (0) and 7 (5), mean 6; 8 (4) by itself
    assert ends[:8] == [0, 2, 4, 6, 8, 9, 11, 12]
    assert (~ranking.first(2)["a"]).nonzero().flatten().tolist() == [1, 3]
    assert ranking.first(8)["b"].tolist() == [False] * 6 + [True] * 2
    six = ranking.first(11)
    assert six["a"].tolist() == [False, False, True, False, True, False] and six["b"].tolist() == [False] * 7 + [
        True
    ]
    assert (~ranking.first(12)["a"]).nonzero().flatten().tolist() == [0, 1, 3, 4, 5]
    assert ranking.first(ends[-1]).removed == ranking.size == 24 - 3
    assert [ranking.up_to(count).removed for count in (1, 2, 3, 10, 11, 100)] == [0, 2, 2, 9, 11, 21]


def test_within_the_layer_each_loses_the_same_share_whatever_its_scores() -> None:
    scores = {"a": torch.arange(6.0), "b": 1000 + torch.arange(8.0), "c": torch.arange(10.0).flip(0)}
    model = seeded(ConvNet)
    groups = free_groups(channel_groups(model, images()))
    keep = ChannelRanking(model, groups, scores, PruneOptions("layer")).first(12)
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"a": 3, "b": 4, "c": 5}
    assert keep["c"].tolist() == [True] * 5 + [False] * 5


@pytest.mark.parametrize("name", ["LeNet5", "ResNet18", "MobileNetV1"])
def test_the_penalty_is_what_a_really_cut_network_saves(name: str) -> None:
    model = shipped(name, image_size=32)
    example = torch.zeros(1, 1, 32, 32)
    groups = channel_groups(model, example)
    budget = Macs(model, free_groups(groups), example)
    whole = count_macs(model, example)[0]
    for group in list(free_groups(groups))[:: 2 if name == "LeNet5" else 9]:
        keep = torch.ones(groups[group].channels, dtype=torch.bool)
        keep[0] = False
        twin = copy.deepcopy(model)
        cut(twin, {group: keep}, groups)
        assert budget.freed(group) == pytest.approx(whole - count_macs(twin, example)[0])


def test_multiply_adds_make_expensive_channels_go_first() -> None:
    model = seeded(ConvNet)
    groups = free_groups(channel_groups(model, images()))
    costs = {name: Macs(model, groups, images()).freed(name) for name in groups}
    first = max(costs, key=costs.__getitem__)
    cheapest = min(costs, key=costs.__getitem__)
    assert costs[first] > costs[cheapest] and first != list(UNITS)[-1]
    for penalty, gap, expected in ((0.0, 0.1, "c"), (1e-3, 0.1, first)):
        made = Made(lambda _, name, origin, gap=gap: torch.ones(len(origin)) - (gap if name == "c" else 0))
        _, log, _ = run(made, frequency=2, per_step=2, maximum=1, flops=penalty)
        went = {name: UNITS[name] - len(left) for name, left in log.left[0][1].items()}
        assert went == {name: 2 if name == expected else 0 for name in UNITS}


def test_a_layers_scores_can_be_divided_by_their_norm() -> None:
    def scaled(_: int, name: str, origin: Tensor) -> Tensor:
        return (1.0 + origin) * {"a": 1, "b": 1000, "c": 1e6}[name]

    _, plain, _ = run(Made(scaled), frequency=2, per_step=3, maximum=1)
    assert len(plain.left[0][1]["a"]) == 3
    _, normed, _ = run(Made(scaled), frequency=2, per_step=3, maximum=1, l2_per_layer=True)
    units = [((1 + index) / sum((1 + i) ** 2 for i in range(count)) ** 0.5, name, index)
             for name, count in UNITS.items() for index in range(count)]  # fmt: skip
    went = {(name, index) for _, name, index in sorted(units)[:3]}
    left = normed.left[0][1]
    assert {
        (name, index) for name, count in UNITS.items() for index in range(count) if index not in left[name]
    } == went


def test_no_step_while_the_loss_is_too_high_and_scores_go_on_adding_up() -> None:
    table = torch.rand(40, 10, generator=torch.Generator().manual_seed(1))
    criterion = Made(lambda call, name, origin: table[call, origin])
    _, log, _ = run(criterion, frequency=2, per_step=2, maximum=1, loss_limit=0.0)
    assert log.left == [] and criterion.calls == 12
    assert "training ended after 0 of 1 steps of 2 batches, 0 channels were pruned" in log.warnings[0]

    class Falling(EveryNBatches):
        @hookimpl
        def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
            super().batch_ended(trainer, torch.tensor(3.0 if trainer.progress.step <= 4 else 1.0))

    schedule = Iterative(frequency=2, per_step=2, maximum=1, loss_limit=2.0)
    made = Made(lambda call, name, origin: table[call, origin])
    pruner = Falling(made, schedule.plan(0.0, 4), schedule=schedule)
    trained(pruner, epochs=4)
    (event,) = pruner.events
    assert torch.allclose(event.scores["a"], table[1:7].mean(0)[:6])


def test_fixed_scores_are_those_of_the_first_step_that_prunes_and_cost_nothing_later() -> None:
    table = torch.rand(40, 10, generator=torch.Generator().manual_seed(1))
    criterion = Made(lambda call, name, origin: table[call, origin])
    _, log, pruner = run(criterion, frequency=2, per_step=2, maximum=5, start=2, fixed_criteria=True)
    assert criterion.calls == 4 and [step for step, _ in log.left] == [4, 6, 8, 10]
    mean = table[1:5].mean(0)
    units = [(float(mean[index]), position, name, index) for position, (name, count) in enumerate(UNITS.items())
             for index in range(count)]  # fmt: skip
    went = {(name, index) for _, _, name, index in sorted(units)[:8]}
    left = log.left[-1][1]
    assert {
        (name, index) for name, count in UNITS.items() for index in range(count) if index not in left[name]
    } == went
    assert torch.equal(pruner.events[-1].scores["c"], mean[torch.tensor(log.left[-2][1]["c"])])


def test_steps_before_the_first_that_prunes_count_and_only_score() -> None:
    _, log, _ = run(Made(), frequency=2, per_step=2, maximum=4, start=3)
    assert [step for step, _ in log.left] == [6, 8]
    assert log.phases == ["warmup", "pruning", "pruning", "final"]


def test_same_seed_same_bits_and_momentum_is_cut_along() -> None:
    first, _, _ = run(build("criterions", "TaylorGate"), frequency=2)
    second, _, _ = run(build("criterions", "TaylorGate"), frequency=2)
    assert same(first.model.state_dict(), second.model.state_dict())
    state = unwrapped(first.optimizer).state
    assert all(state[p]["momentum_buffer"].shape == p.shape for p in first.model.parameters())


def test_a_step_that_takes_nothing_is_no_pruning() -> None:
    """Of seven steps to 3 of 24 channels some are due for less than half a channel more."""
    _, log, pruner = run(Made(), limit=3 / 24, epochs=5, frequency=1, maximum=7)
    assert gone(log) == [1, 2, 3] and all(event.removed for event in pruner.events)
    _, log, pruner = run(Made(), limit=0.0, frequency=2)
    assert log.left == [] and log.warnings == []


def test_what_cannot_go_is_told_of() -> None:
    _, log, _ = run(Made(), frequency=2, per_step=30, maximum=2)
    assert gone(log)[-1] == 21
    assert sum("9 channels fewer than requested were pruned" in line for line in log.warnings) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"frequency": 0}, "frequency must be .*got 0"),
        ({"per_step": -1}, "per_step must be .*got -1"),
        ({"group_size": 1.5}, "group_size must be .*got 1.5"),
        ({"momentum": 1.0}, r"momentum must be a number >= 0 and < 1"),
        ({"flops": -1.0}, "flops must be at least 0"),
        ({"per_step": 3, "group_size": 4}, "3 channels per step in sets of 4"),
        ({"maximum": 2, "start": 3}, "3, of 2 steps"),
    ],
)
def test_impossible_steps_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Iterative(**fields)


def test_a_score_that_is_no_number_is_told_of_when_it_would_be_ranked() -> None:
    made = Made(lambda call, name, origin: torch.full((len(origin),), torch.nan if call == 2 else 1.0))
    with pytest.raises(UsageError, match="Made.score: 'a' contains NaN"):
        run(made, frequency=3, per_step=1, maximum=1)


def test_without_momentum_an_infinite_score_stays_one() -> None:
    averages = Averages(0.0)
    for score in (1.0, 3.0):
        averages.add({"g": torch.tensor([score, torch.inf])})
        averages.step()
    assert averages.value["g"].tolist() == [3, torch.inf]


@pytest.mark.parametrize(("name", "momentum"), [("Oracle", 0.0), ("Combinatorial", 0.0), ("TaylorGate", 0.9)])
def test_exact_changes_of_the_loss_are_not_averaged_over_steps(name: str, momentum: float) -> None:
    pruner = pruner_for(build("criterions", name), Iterative(), 0.5, 2)
    assert isinstance(pruner, EveryNBatches) and pruner._averages.momentum == momentum


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.9])
def test_the_momentum_is_the_weight_of_the_earlier_steps(momentum: float) -> None:
    """A_1 = c_1 and A_s = m * A_(s-1) + (1 - m) * c_s, c_s the mean of the step's batches, in float64."""
    generator = torch.Generator().manual_seed(2)
    steps = [torch.rand(batches, 5, generator=generator, dtype=torch.float64) for batches in (3, 1, 4)]
    averages, expected = Averages(momentum), [0.0] * 5
    for number, step in enumerate(steps):
        for row in step:
            averages.add({"a": row.clone()})
        averages.step()
        means = [sum(column) / len(column) for column in step.T.tolist()]
        m = momentum if number else 0.0
        expected = [m * old + (1 - m) * new for old, new in zip(expected, means, strict=True)]
        assert averages.value["a"].tolist() == pytest.approx(expected, rel=1e-12)
