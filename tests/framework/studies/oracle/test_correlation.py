"""The correlations against their definitions, pair by pair."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.framework.studies.oracle.correlation import MEASURES, correlation, mean

Numbers = list[float]


def pearson(x: Numbers, y: Numbers) -> float:
    """Covariance over both deviations."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    pairs = [(a - mx, b - my) for a, b in zip(x, y, strict=True)]
    sizes = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / sizes


def ranks(x: Numbers) -> Numbers:
    """The mean place of equal numbers."""
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def kendall(x: Numbers, y: Numbers) -> float:
    """tau-b: concordant less discordant pairs, over those not tied on one side and on the other."""
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    signs = [(sign(x[i] - x[j]), sign(y[i] - y[j])) for i, j in pairs]
    return sum(a * b for a, b in signs) / math.sqrt(sum(a * a for a, _ in signs) * sum(b * b for _, b in signs))


def sign(number: float) -> int:
    return (number > 0) - (number < 0)


PAIRS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=14)


@settings(max_examples=150, deadline=None)
@given(pairs=PAIRS)
def test_the_measures_are_those_of_their_definitions_with_ties_too(pairs: list[tuple[int, int]]) -> None:
    x, y = ([float(one) for one in part] for part in zip(*pairs, strict=True))
    found = correlation(torch.tensor(x), torch.tensor(y))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found == dict.fromkeys(MEASURES)
        return
    expected = {"pearson": pearson(x, y), "spearman": pearson(ranks(x), ranks(y)), "kendall": kendall(x, y)}
    assert found == {name: pytest.approx(value, abs=1e-12) for name, value in expected.items()}


def test_a_known_case_with_ties() -> None:
    found = correlation(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0, 4.0]))
    assert found["kendall"] == pytest.approx(5 / math.sqrt(5 * 6))
    assert found["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("scores", [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
def test_constant_scores_have_no_correlation(scores: list[float]) -> None:
    assert correlation(torch.tensor(scores), torch.arange(3)) == dict.fromkeys(MEASURES)
    assert correlation(torch.arange(3), torch.tensor(scores)) == dict.fromkeys(MEASURES)


def test_a_single_entry_has_no_correlation() -> None:
    assert correlation(torch.ones(1), torch.ones(1)) == dict.fromkeys(MEASURES)


def test_entries_that_are_never_pruned_do_not_count() -> None:
    scores, worth = torch.tensor([1.0, torch.inf, 2.0, 5.0]), torch.tensor([1.0, -9.0, 3.0, 4.0])
    assert correlation(scores, worth) == correlation(scores[[0, 2, 3]], worth[[0, 2, 3]])
    assert correlation(torch.tensor([1.0, torch.inf]), torch.ones(2)) == dict.fromkeys(MEASURES)


def test_numbers_too_small_to_be_squared_in_float32_are_told_apart() -> None:
    tiny = torch.arange(1, 9, dtype=torch.float64) * 1e-120
    assert correlation(tiny, torch.arange(1, 9))["pearson"] == pytest.approx(1.0)


def test_the_mean_is_over_what_is_defined() -> None:
    none = dict.fromkeys(MEASURES)
    found = mean([{"pearson": 0.5, "spearman": 1.0, "kendall": None}, {"pearson": 0.1, "spearman": None,
                                                                      "kendall": None}, none])  # fmt: skip
    assert found == {"pearson": pytest.approx(0.3), "spearman": 1.0, "kendall": None}
    assert mean([none]) == none == mean([])
