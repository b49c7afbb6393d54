"""Every prefix of a ranking is the selection that sorting in Python gives: scopes, floors, sets, masks, inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.selection.channel_ranking import INPUTS, ChannelRanking, competing
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Ranking
from secateur.framework.pruning.selection.select import select
from secateur.framework.pruning.surgery.cutting import cut
from tests.networks import ConvNet, ResNet, images, random_keep, seeded

VALUES = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 3.0, math.inf, -math.inf])


@st.composite
def tensors(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Tensor]]:
    """Scores, floors and masks of a few small tensors."""
    scores, floors, current = {}, {}, {}
    for number, size in enumerate(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))):
        name = f"t{number}"
        scores[name] = torch.tensor(draw(st.lists(VALUES, min_size=size, max_size=size)))
        floors[name] = draw(st.integers(0, 3))
        if draw(st.booleans()):
            current[name] = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return scores, floors, current


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_each_prefix_is_the_selection_of_that_number(
    problem: tuple[dict[str, Tensor], dict[str, int], dict[str, Tensor]],
) -> None:
    scores, floors, current = problem
    plain, sorted_once = Ranking(scores, floors, current), Ranking(scores, floors, current)
    sorted_once.sort()
    total = sum(score.numel() for score in scores.values())
    off = sum(int((~mask).sum()) for mask in current.values())
    assert (plain.pruned, list(plain.ends)) == (off, list(range(plain.size + 1)))
    for count in range(-1, total - off + 2):
        keep = select(scores, min(total, off + max(0, count)) / total, floor=floors, current=current)
        for ranking in (plain, sorted_once):
            prefix = ranking.first(count)
            assert {name: mask.tolist() for name, mask in prefix.items()} == {
                n: m.tolist() for n, m in keep.items()
            }
            assert prefix.removed == off + min(max(0, count), ranking.size)


def traced(make: type[nn.Module], cut_first: bool) -> tuple[nn.Module, Groups]:
    model = seeded(make)
    groups = channel_groups(model, images(1))
    if cut_first:
        groups = cut(model, random_keep(groups), groups)
    return model, free_groups(groups)


def ordered_sets(
    model: nn.Module, groups: Groups, scores: dict[str, Tensor], limits: PruneOptions, dense: dict[str, int]
) -> list[list[tuple[str, int]]]:
    """The sets of channels in the order of pruning, by loops."""
    floors, names = limits.floors(model, groups), list(scores)
    keyed = []
    for part in competing(model, groups, limits.scope):
        sets = []
        for name in part:
            values = scores[name].tolist()
            order = sorted(range(len(values)), key=lambda at: (values[at], at))
            order = [at for at in order[: max(0, len(order) - floors[name])] if values[at] != math.inf]
            for start in range(0, len(order), limits.group_size):
                chunk = order[start : start + limits.group_size]
                mean = sum(values[at] for at in chunk) / len(chunk)
                sets.append((mean, names.index(name), start, [(name, at) for at in chunk]))
        sets.sort(key=lambda one: one[:3])
        due = sum(dense[name] - len(scores[name]) for name in part)
        for mean, number, start, chunk in sets:
            due += len(chunk)
            share = (due - 0.5) / sum(dense[name] for name in part)
            keyed.append((mean if limits.scope == "global" else share, number, start, chunk))
    return [chunk for *_, chunk in sorted(keyed, key=lambda one: one[:3])]


@settings(max_examples=40, deadline=None)
@given(
    make=st.sampled_from([ConvNet, ResNet]), cut_first=st.booleans(), seed=st.integers(0, 10**6),
    scope=st.sampled_from(["global", "layer", "isomorphic"]), size=st.integers(1, 4), floor=st.integers(0, 4),
    share=st.sampled_from([0.0, 0.3, 0.8]),
)  # fmt: skip
def test_each_prefix_of_channels_is_whole_sets_in_their_order(
    make: type[nn.Module], cut_first: bool, seed: int, scope: str, size: int, floor: int, share: float
) -> None:
    model, groups = traced(make, cut_first)
    dense = {name: group.channels for name, group in traced(make, cut_first=False)[1].items()}
    limits = PruneOptions(scope, min_channels=floor, keep_share=share, group_size=size)
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor([-math.inf, 0.0, 0.25, 1.0, 2.0, 2.5, math.inf])
    scores = {
        name: choices[torch.randint(len(choices), (group.channels,), generator=generator)]
        for name, group in groups.items()
    }
    ranking = ChannelRanking(model, groups, scores, limits)
    sets = ordered_sets(model, groups, scores, limits, dense)
    pruned = [unit for chunk in sets for unit in chunk]
    assert ranking.size == len(pruned)
    ends = [sum(map(len, sets[:number])) for number in range(len(sets) + 1)]
    for count in range(ranking.size + 1):
        keep = ranking.first(count)
        assert keep.removed == count
        assert ranking.up_to(count).removed == max(end for end in ends if end <= count)
        if count in ends:
            off = {(name, at) for name, mask in keep.items() for at in (~mask).nonzero().flatten().tolist()}
            assert off == set(pruned[:count])
    assert set(ranking.ends) <= set(ends) and ranking.ends[-1] == ranking.size
    if scope == "global":
        assert list(ranking.ends) == ends


@pytest.mark.parametrize("scope", ["layer", "isomorphic"])
def test_the_ends_of_a_scope_by_shares_are_the_selections_of_shares(scope: str) -> None:
    model, groups = traced(ResNet, cut_first=False)
    scores = {name: torch.rand(group.channels) for name, group in groups.items()}
    ranking = ChannelRanking(model, groups, scores, PruneOptions(scope))
    parts = competing(model, groups, scope)
    by_share = set()
    for step in range(2001):
        keep = {}
        for part in parts:
            floors = dict.fromkeys(part, 1)
            keep |= select({name: scores[name] for name in part}, (step + 0.01) / 2001, floor=floors)
        by_share.add(sum(int((~mask).sum()) for mask in keep.values()))
        prefix = ranking.first(sum(int((~mask).sum()) for mask in keep.values()))
        assert all(torch.equal(prefix[name], mask) for name, mask in keep.items())
    assert by_share == set(ranking.ends)


def test_no_global_selection_ends_with_an_input() -> None:
    model, groups = traced(ConvNet, cut_first=False)
    scores = {name: torch.full((group.channels,), 5.0) for name, group in groups.items()}
    scores["b"] = torch.arange(8.0)
    scores[INPUTS] = torch.tensor([2.5, 9.0, 0.5])
    ranking = ChannelRanking(model, groups, scores, PruneOptions(), inputs=torch.ones(3, dtype=torch.bool))
    assert list(ranking.ends)[:5] == [0, 1, 3, 4, 6]  # after 0; 0.5 and 1; 2; 2.5 and 3
    assert ranking.first(6)[INPUTS].tolist() == [False, True, False]
