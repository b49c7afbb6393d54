"""Intervals, worst cases and medians, and the choice of points."""

import io
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from secateur.framework.settings.attacks import ATTACKS
from secateur.framework.studies.robustness.assess import Assessment, summary, to_show, wilson
from secateur.framework.studies.robustness.attacking import Outcome
from secateur.framework.studies.robustness.points import Points, balanced, collect
from secateur.framework.studies.robustness.tables import robustness_tables
from secateur.utils.errors import RunError


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (90, 100, 0.8256, 0.9448),
        (1, 3, 0.0615, 0.7923),
    ],
)
def test_wilsons_interval_has_its_known_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilsons_interval_solves_its_equation(pair: tuple[int, int]) -> None:
    """Its ends are the shares p from which the observed one is 1.96 standard errors of p away."""
    hits, total = pair
    low, high = wilson(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(hits / total - end) == pytest.approx(
                1.959964 * math.sqrt(end * (1 - end) / total), rel=1e-5
            )


def outcome(name: str, epsilons: tuple[float, ...], distance: list[float]) -> Outcome:
    apart = torch.tensor(distance, dtype=torch.float64)
    broken = torch.stack([apart <= epsilon for epsilon in epsilons])
    return Outcome(ATTACKS[name], {}, epsilons, broken, apart, {})


def assessment(*outcomes: Outcome, wrong: int = 1) -> Assessment:
    count = outcomes[0].broken.shape[1]
    targets = torch.zeros(count, dtype=torch.int64)
    clean = targets.clone()
    clean[:wrong] = 1
    points = Points(torch.zeros(count, 1, 2, 2), targets)
    return Assessment("net", points, clean, list(outcomes), {"signs": []}, [])


def test_a_point_is_robust_only_if_it_survives_every_attack_of_its_norm() -> None:
    inf = math.inf
    found = summary(
        assessment(
            outcome("DDNAttack", (0.5, 1.0), [0, 0.4, inf, 0.9, inf]),
            outcome("CarliniWagner", (0.5, 1.0), [0, 0.8, 0.3, inf, inf]),
            outcome("FGSM", (0.1,), [0, inf, inf, inf, 0.05]),
        )
    )
    assert found["attacks"]["DDNAttack"]["robust_accuracy"] == [3 / 5, 2 / 5]
    assert found["attacks"]["CarliniWagner"]["robust_accuracy"] == [3 / 5, 2 / 5]
    assert found["worst_case"]["L2"]["robust_accuracy"] == [2 / 5, 1 / 5]
    assert found["worst_case"]["L2"]["attacks"] == ["DDNAttack", "CarliniWagner"]
    assert found["worst_case"]["Linf"]["robust"] == [3]
    assert found["worst_case"]["Linf"]["interval"] == [list(wilson(3, 5))]
    assert (found["samples"], found["misclassified"], found["clean_accuracy"]) == (5, 1, 4 / 5)


@pytest.mark.parametrize(
    ("distance", "median", "count"),
    [
        ([0, 0.2, 0.4, 0.6], 0.4, 3),
        ([0, 0.2, 0.4, math.inf], 0.4, 2),
        ([0, 0.2, math.inf, math.inf], None, 1),
        ([0, 0.2, 0.4, math.inf, math.inf], None, 2),  # the middle lies between 0.4 and nothing
    ],
)
def test_the_median_is_over_points_that_were_right_and_is_not_made_up(
    distance: list[float], median: float | None, count: int
) -> None:
    found = summary(assessment(outcome("DDNAttack", (0.5,), distance)))["attacks"]["DDNAttack"]
    assert found["median_perturbation"] == median
    assert found["adversarials_found"] == count
    json.dumps(found, allow_nan=False)


def test_a_network_that_is_never_right_has_no_median() -> None:
    found = summary(assessment(outcome("DDNAttack", (0.5,), [0, 0]), wrong=2))
    assert found["attacks"]["DDNAttack"]["median_perturbation"] is None
    assert found["clean_accuracy"] == 0 and found["worst_case"]["L2"]["robust_accuracy"] == [0.0]


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    count=st.integers(1, 70),
    seed=st.integers(0, 5),
)
def test_a_part_is_as_balanced_as_it_can_be(labels: list[int], count: int, seed: int) -> None:
    targets = torch.tensor(labels)
    chosen = balanced(targets, count, seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == min(count, len(labels))
    assert torch.equal(chosen, balanced(targets, count, seed))
    taken = torch.bincount(targets[chosen], minlength=5)
    there = torch.bincount(targets, minlength=5)
    for label in range(5):  # a class has less than another by two only where it is used up
        if taken[label] + 1 < taken.max():
            assert taken[label] == there[label]


def test_the_part_depends_on_the_seed() -> None:
    targets = torch.arange(200) % 10
    assert not torch.equal(balanced(targets, 50, 0), balanced(targets, 50, 1))
    assert torch.bincount(targets[balanced(targets, 50, 0)]).tolist() == [5] * 10


def test_undoing_the_normalisation_gives_back_the_pixels() -> None:
    pixels = torch.randint(0, 256, (6, 3, 4, 4)) / 255
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    batches: list[tuple[Tensor, Tensor]] = [
        ((part - shift) / scale, torch.zeros(3).long()) for part in pixels.split(3)
    ]
    torch.testing.assert_close(collect(batches, mean, std).pixels, pixels, rtol=0, atol=1e-6)
    with pytest.raises(RunError, match=r"\[0, 1\].*mean and std"):
        collect(batches, (0.0,), (1.0,))
    with pytest.raises(RunError, match="nothing to test"):
        collect([], mean, std)


def test_what_is_shown_is_right_and_of_many_classes() -> None:
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    clean = torch.tensor([9, 0, 0, 1, 1, 2])
    assert to_show(clean, targets, 4) == [1, 3, 5, 2]


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_cut_where_the_terminal_is_narrow(width: int) -> None:
    epsilons = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
    outcomes = [outcome(name, epsilons, [0, 0.4, 1.7, 2.9, math.inf]) for name in (
        "L2RepeatedAdditiveGaussianNoiseAttack", "DDNAttack", "CarliniWagner")]  # fmt: skip
    results = {"network": "net", **summary(assessment(*outcomes))}
    results["sanity"] |= {"probed": 0}
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        for part in robustness_tables(results):
            console.print(part)
    text = captured.get()
    worst = results["worst_case"]["L2"]
    shown = re.findall(r"\d\.\d{4}", text)
    for share, (low, high) in zip(worst["robust_accuracy"], worst["interval"], strict=True):
        assert {f"{share:.4f}", f"{low:.4f}", f"{high:.4f}"} <= set(shown)
    assert "…" not in text and all(f"{epsilon:g}" in text for epsilon in epsilons)
