"""A search for a budget ranks once, and gives the prefix that trying all of them gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.selection.budgets import make_budget
from secateur.framework.pruning.selection.channel_ranking import ChannelRanking
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Ranking
from secateur.framework.pruning.selection.search import nearest, to_budget
from tests.networks import ConvNet, ResNet, images, seeded


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
