"""Floors, thresholds and shares of single layers, number by number."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.selection.budgets import Nodes, make_budget
from secateur.framework.pruning.selection.channel_ranking import ChannelRanking, nearest, to_budget
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Ranking
from tests.networks import ConvNet, ResNet, images, seeded

UNITS = {"a": 6, "b": 8, "c": 10}


@pytest.fixture
def traced() -> tuple[nn.Module, Groups]:
    model = seeded(ConvNet)
    return model, free_groups(channel_groups(model, images()))


def rising() -> dict[str, Tensor]:
    return {name: torch.arange(1.0, count + 1) for name, count in UNITS.items()}


@pytest.mark.parametrize(
    ("share", "floors"),
    [(0.0, [1, 1, 1]), (0.3, [2, 3, 3]), (0.5, [3, 4, 5]), (0.55, [4, 5, 6]), (0.7, [5, 6, 7])],
)
def test_of_each_layer_at_least_the_share_stays_rounded_up(
    traced: tuple[nn.Module, Groups], share: float, floors: list[int]
) -> None:
    assert list(PruneOptions(keep_share=share).floors(*traced).values()) == floors


@pytest.mark.parametrize(("share", "floor"), [(0.28, 7), (0.56, 14), (0.57, 15)])
def test_a_share_that_is_a_whole_number_of_channels_is_not_rounded_up(share: float, floor: int) -> None:
    """0.28 * 25 is 7.000000000000001 in floating point."""
    model = nn.Sequential(nn.Linear(4, 25), nn.ReLU(), nn.Linear(25, 3))
    groups = free_groups(channel_groups(model, torch.zeros(1, 4)))
    assert list(PruneOptions(keep_share=share).floors(model, groups).values()) == [floor]


def test_a_group_that_cannot_be_removed_keeps_a_channel_whatever_the_floor(
    traced: tuple[nn.Module, Groups],
) -> None:
    model, groups = traced
    held = {name: replace(group, removable=name != "b") for name, group in groups.items()}
    assert PruneOptions(min_channels=0).floors(model, held) == {"a": 0, "b": 1, "c": 0}
    keep = ChannelRanking(model, held, rising(), PruneOptions(min_channels=0)).first(24)
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"a": 0, "b": 1, "c": 0}


def test_what_lies_at_the_threshold_goes(traced: tuple[nn.Module, Groups]) -> None:
    keep = ChannelRanking(*traced, rising(), PruneOptions()).above(4.0)
    assert {name: mask.tolist() for name, mask in keep.items()} == {
        name: [False] * 4 + [True] * (count - 4) for name, count in UNITS.items()
    }


@pytest.mark.parametrize(("share", "gone"), [(0.35, [2, 3, 4]), (0.65, [4, 5, 6]), (0.25, [2, 2, 2])])
def test_by_layer_each_loses_its_own_rounded_share(
    traced: tuple[nn.Module, Groups], share: float, gone: list[int]
) -> None:
    """Though 8 of all 24 would be nearer to 0.35 than the 9 that the layers add up to."""
    model, groups = traced
    ranking = ChannelRanking(model, groups, rising(), PruneOptions("layer"))
    keep = to_budget(ranking, Nodes(model, groups), share)
    assert [int((~mask).sum()) for mask in keep.values()] == gone


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.32, 0.55, 0.6, 0.86])
def test_the_number_of_channels_is_the_nearest_and_not_the_next_one(
    traced: tuple[nn.Module, Groups], share: float
) -> None:
    """Below the share as often as above it: 7 of 24 are nearer to 0.3 than 8."""
    model, groups = traced
    keep = to_budget(ChannelRanking(model, groups, rising(), PruneOptions()), Nodes(model, groups), share)
    assert keep.removed == min(range(22), key=lambda count: abs(count / 24 - share))


# A search for a budget ranks once, and gives the prefix that trying all of them gives.


@pytest.mark.parametrize("scope", ["global", "layer", "isomorphic"])
@pytest.mark.parametrize("budget", ["nodes", "weights", "params", "macs"])
@pytest.mark.parametrize("make", [ConvNet, ResNet])
def test_the_selection_is_the_nearest_of_all_prefixes(make: Any, budget: str, scope: str) -> None:
    model, x = seeded(make), images(1)
    groups = free_groups(channel_groups(model, x))
    generator = torch.Generator().manual_seed(4)
    scores = {name: torch.rand(group.channels, generator=generator) for name, group in groups.items()}
    ranking = ChannelRanking(model, groups, scores, PruneOptions(scope))
    wanted = make_budget(budget, model, groups, x, None)
    reached = [wanted.predicted(ranking.first(count)) for count in ranking.ends]
    for goal in (0.05, 0.3, 0.42, 0.77, 0.99):
        keep = nearest(ranking, wanted, goal)
        assert abs(wanted.predicted(keep) - goal) == min(abs(one - goal) for one in reached)


def test_a_search_sorts_once_however_many_selections_it_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = seeded(ResNet), images(1)
    groups = free_groups(channel_groups(model, x))
    scores = {name: torch.rand(group.channels) for name, group in groups.items()}
    calls: list[str] = []

    def counted(of: type, name: str) -> None:
        method = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *given, **options: (calls.append(name), method(*given, **options))[1])

    counted(ChannelRanking, "_sort_sets")
    counted(Ranking, "_place")
    counted(Ranking, "_candidates")
    counted(Tensor, "sort")
    ranking = ChannelRanking(model, groups, scores, PruneOptions())
    sorts = len(calls)
    counted(Ranking, "first")
    for budget in ("nodes", "params", "macs"):
        to_budget(ranking, make_budget(budget, model, groups, x, None), 0.5, strict=False)
    assert calls[:sorts].count("_sort_sets") == calls[:sorts].count("_place") == 1
    assert set(calls[sorts:]) == {"first"} and len(calls) - sorts > 10


def test_a_ranking_of_entries_is_sorted_by_the_search_and_then_only_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = seeded(ConvNet)
    groups = free_groups(channel_groups(model, images(1)))
    ranking = Ranking({name: torch.rand(group.channels) for name, group in groups.items()})
    places = []
    monkeypatch.setattr(Ranking, "_place", lambda self, ranks, plain=Ranking._place: (
        places.append(len(ranks)), plain(self, ranks)))  # fmt: skip
    budget = make_budget("weights", model, groups, images(1), None)
    for goal in (0.2, 0.4, 0.6):
        nearest(ranking, budget, goal)
    assert places == [24]
