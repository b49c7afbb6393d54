"""`select` against a greedy implementation that anyone can read."""

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.framework.pruning.selection.ranking import Keep, lowest
from secateur.framework.pruning.selection.select import select
from secateur.utils.errors import UsageError

VALUES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, math.inf, -math.inf])
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
