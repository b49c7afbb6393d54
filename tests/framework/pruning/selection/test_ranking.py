"""Every prefix of a ranking is the selection that sorting in Python gives: scopes, floors, sets, masks, inputs."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.selection.channel_ranking import INPUTS, ChannelRanking, competing
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Keep, Ranking, lowest, select
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from tests.networks import ConvNet, ResNet, images, random_keep, seeded

VALUES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, math.inf, -math.inf])


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


# `select` against a greedy implementation that anyone can read.

SHAPES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4)


def greedy(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: str,
    floor: int | Mapping[str, int] | None,
    current: Mapping[str, Tensor],
    gone: Mapping[str, int],
) -> tuple[dict[str, Tensor], int]:
    """One entry after the other: the lowest that may go, until enough are gone."""
    keep = {name: current.get(name, torch.ones_like(score)) != 0 for name, score in scores.items()}
    short = 0
    for part in _parts(scores, scope):
        size = len(part) + sum(gone.get(name, 0) for name in {name for name, _ in part})
        already = sum(not keep[name].flatten()[at] for name, at in part)
        wanted = round(sparsity * size) - already - (size - len(part))
        while wanted > 0:
            best = None
            for name, at in part:
                value = scores[name].flatten()[at].item()
                if keep[name].flatten()[at] and value != math.inf and (best is None or value < best[0]):
                    rows = part if scope == "row" else [(name, i) for i in range(scores[name].numel())]
                    left = sum(bool(keep[name].flatten()[i]) for one, i in rows if one == name)
                    if left > _floor(name, scores[name], floor):
                        best = (value, name, at)
            if best is None:
                short += wanted
                break
            keep[best[1]].view(-1)[best[2]] = False
            wanted -= 1
    return keep, short


def _parts(scores: Mapping[str, Tensor], scope: str) -> list[list[tuple[str, int]]]:
    flat = {name: [(name, i) for i in range(score.numel())] for name, score in scores.items()}
    if scope == "global":
        return [sum(flat.values(), [])]
    if scope == "layer":
        return list(flat.values())
    rows = []
    for name, score in scores.items():
        width = score.numel() // len(score) if score.dim() > 1 else score.numel()
        rows += [flat[name][i : i + width] for i in range(0, score.numel(), width)]
    return rows


def _floor(name: str, score: Tensor, floor: int | Mapping[str, int] | None) -> int:
    default = 1 if score.dim() == 1 else 0
    if floor is None:
        return default
    return floor if isinstance(floor, int) else floor.get(name, default)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    scores, current, gone = {}, {}, {}
    for number, shape in enumerate(draw(SHAPES)):
        size = math.prod(shape)
        values = draw(st.lists(VALUES, min_size=size, max_size=size))
        scores[f"t{number}"] = torch.tensor(values).reshape(shape)
        if draw(st.booleans()):
            mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
            current[f"t{number}"] = torch.tensor(mask).reshape(shape)
        gone[f"t{number}"] = draw(st.integers(0, 5))
    scope = draw(st.sampled_from(["global", "layer", "row"]))
    floors = st.none() | st.integers(0, 3) | st.dictionaries(st.sampled_from(sorted(scores)), st.integers(0, 5))
    return {
        "scores": scores,
        "sparsity": draw(st.sampled_from([0.0, 0.25, 0.5, 0.98, 1.0]) | st.floats(0, 1)),
        "scope": scope,
        "floor": draw(floors),
        "current": current,
        "gone": {} if scope == "row" else gone,
    }


@settings(max_examples=300, deadline=None)
@given(problems())
def test_select_is_the_greedy_choice(problem: dict[str, object]) -> None:
    before = [{k: v.clone() for k, v in problem[part].items()} for part in ("scores", "current")]  # type: ignore
    expected, short = greedy(**problem)  # type: ignore[arg-type]
    keep = select(**problem)  # type: ignore[arg-type]
    assert {name: mask.tolist() for name, mask in keep.items()} == {n: m.tolist() for n, m in expected.items()}
    assert keep.short == short
    for part, old in zip(("scores", "current"), before, strict=True):
        now = problem[part]
        assert all(torch.equal(now[name], old[name]) for name in old)  # type: ignore[index]


@given(n=st.integers(1, 300), sparsity=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_exactly_the_rounded_share_is_off(n: int, sparsity: float) -> None:
    scores = {"w": torch.rand(n, 1, generator=torch.Generator().manual_seed(n))}
    assert select(scores, sparsity).removed == round(sparsity * n)


def test_the_kept_count_of_lenet300_is_the_papers() -> None:
    sizes = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
    generator = torch.Generator().manual_seed(0)
    keep = select({name: torch.rand(shape, generator=generator) for name, shape in sizes.items()}, 0.98)
    assert sum(int(mask.sum()) for mask in keep.values()) == 5324


def test_equal_scores_go_in_mapping_order_then_by_index() -> None:
    keep = select({"z": torch.ones(2, 2), "a": torch.ones(2, 2)}, 5 / 8)
    assert keep["z"].sum() == 0
    assert keep["a"].flatten().tolist() == [False, True, True, True]


def test_channels_keep_one_by_default_and_weights_none() -> None:
    assert select({"c": torch.rand(5)}, 1.0)["c"].sum() == 1
    assert select({"w": torch.rand(5, 1)}, 1.0)["w"].sum() == 0


def test_where_a_floor_holds_the_next_lowest_of_another_tensor_go() -> None:
    keep = select({"low": torch.tensor([0.1, 0.2]), "high": torch.tensor([5.0, 6.0, 7.0, 8.0])}, 0.5)
    assert keep["low"].tolist() == [False, True]
    assert keep["high"].tolist() == [False, False, True, True]
    assert keep.short == 0


def test_short_counts_what_floors_and_infinities_hold_back() -> None:
    keep = select({"a": torch.tensor([1.0, 2.0]), "b": torch.full((2, 2), torch.inf)}, 0.9)
    assert keep.removed == 1
    assert keep.short == round(0.9 * 6) - 1
    assert select({"a": torch.rand(4)}, 1.0, floor=3).short == 3


def test_more_gone_than_asked_changes_nothing() -> None:
    current = {"w": torch.tensor([[True, False], [False, False]])}
    keep = select({"w": torch.rand(2, 2)}, 0.5, current=current)
    assert torch.equal(keep["w"], current["w"])
    assert keep.short == 0
    assert select({"c": torch.rand(4)}, 0.5, gone={"c": 6}).removed == 0


def test_no_scores_are_no_error() -> None:
    assert select({}, 0.5) == Keep()


def test_row_scope_takes_the_same_share_of_every_row() -> None:
    keep = select({"w": torch.rand(7, 3, 2)}, 0.5, scope="row")
    assert (~keep["w"]).flatten(1).sum(1).tolist() == [3] * 7


@pytest.mark.parametrize("score", [torch.tensor([1.0, torch.nan]), torch.full((2, 2), torch.nan)])
def test_nan_is_an_error_that_names_the_tensor(score: Tensor) -> None:
    with pytest.raises(UsageError, match="'conv.weight' contain NaN"):
        select({"fine": torch.rand(3), "conv.weight": score}, 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": 1.1}, "sparsity must be a number >= 0 and <= 1, got 1.1"),
        ({"sparsity": -0.1}, "<= 1, got -0.1"),
        ({"sparsity": math.nan}, "<= 1, got nan"),
        ({"scope": "channel"}, "unknown scope 'channel'"),
        ({"current": {"w": torch.ones(3)}}, r"mask of 'w' has shape \(3,\), its scores \(2, 2\)"),
        ({"gone": {"w": -1}}, "gone of 'w' .* got -1"),
        ({"gone": {"w": 1}, "scope": "row"}, "scope 'row'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        select({"w": torch.rand(2, 2)}, **{"sparsity": 0.5, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("ties", [1, 7, 1_000_000])
def test_a_million_entries_equal_a_full_stable_sort(ties: int) -> None:
    generator = torch.Generator().manual_seed(ties)
    parts = {"a": (400, 1000), "b": (600_000, 1)}
    scores = {
        name: torch.randint(1_000_000 // ties, shape, generator=generator).float() for name, shape in parts.items()
    }
    flat = torch.cat([score.flatten() for score in scores.values()])
    expected = torch.ones(len(flat), dtype=torch.bool)
    expected[flat.sort(stable=True).indices[:930_000]] = False
    keep = select(scores, 0.93)
    assert torch.equal(torch.cat([mask.flatten() for mask in keep.values()]), expected)


@given(values=st.lists(VALUES, max_size=30), count=st.integers(-2, 32))
@settings(max_examples=200, deadline=None)
def test_lowest_is_a_stable_sort(values: list[float], count: int) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    expected = torch.zeros(len(values), dtype=torch.bool)
    expected[flat.sort(stable=True).indices[: max(0, count)]] = True
    assert torch.equal(lowest(flat, count), expected)
