"""Pruning in rounds: exact ratios, thresholds and warm-up."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur import Rounds
from secateur.framework.schedules.base import round_targets, shares
from secateur.utils.errors import UsageError
from tests.command_line import resolved

LIMITS = st.floats(0, 0.99)


def test_the_published_ratios() -> None:
    assert round_targets(0.75, 5) == pytest.approx([0.375, 1 - 1 / 2.2, 1 - 1 / 2.8, 1 - 1 / 3.4, 0.75])
    kept = [1 - target for target in round_targets(0.75, 5)]
    assert [round(one, 4) for one in kept] == [0.625, 0.4545, 0.3571, 0.2941, 0.25]


@given(LIMITS, st.integers(1, 60))
def test_what_is_kept_telescopes_to_the_limit_without_any_rounding(limit: float, rounds: int) -> None:
    found = round_targets(limit, rounds)
    assert len(found) == rounds and found[-1] == limit
    left = [1.0, *(1 - target for target in found)]
    removed = [limit / (number * limit + rounds * (1 - limit)) for number in range(1, rounds + 1)]
    assert [1 - now / before for before, now in zip(left, left[1:], strict=False)] == pytest.approx(removed)
    assert prod(1 - share for share in removed) == pytest.approx(1 - limit)


@given(LIMITS, st.integers(1, 12), st.integers(0, 5), st.integers(0, 30))
def test_each_round_is_an_epoch_and_the_first_is_the_last_of_the_warm_up(
    limit: float, rounds: int, warmup: int, epochs: int
) -> None:
    schedule, first = Rounds(rounds, warmup), max(0, warmup - 1)
    if epochs < first + rounds:
        with pytest.raises(UsageError, match=f"need {first + rounds} epochs, and epochs is {epochs}"):
            schedule.plan(limit, epochs)
        return
    plan = schedule.plan(limit, epochs)
    assert list(plan) == list(range(first, first + rounds))
    assert [due for (due,) in plan.values()] == round_targets(limit, rounds)


@pytest.mark.parametrize(("warmup", "first"), [(0, 0), (1, 0), (2, 1), (5, 4)])
def test_no_warm_up_and_one_epoch_of_it_are_the_same(warmup: int, first: int) -> None:
    assert min(Rounds(3, warmup).plan(0.5, 10)) == first


def test_thresholds_are_the_targets_and_count_the_rounds() -> None:
    schedule = Rounds(thresholds=(0.3, 0.5, 0.7))
    assert schedule.n_rounds == 3
    assert schedule.plan(0.1, 3) == {0: [0.3], 1: [0.5], 2: [0.7]}
    assert schedule.one_shot(0.1) == [0.3, 0.5, 0.7]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [((30, 50), (0.3, 0.5)), ((0.3, 0.5), (0.3, 0.5)), ((1.0, 50), (0.01, 0.5)), ((0,), (0.0,)), ((), ())],
)
def test_thresholds_may_be_percentages(given_: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert shares(given_) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ((0.5, 0.3), "thresholds 0.5,0.3 must ascend"),
        ((0.5, 0.5), "must ascend"),
        ((50, 30), "thresholds 50,30 must ascend"),
        ((0.5, 1.0), r"a share in \[0, 1\)"),
        ((50, 100), r"a percentage in \[0, 100\)"),
        ((-0.1, 0.5), "thresholds -0.1,0.5"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(given_: tuple[float, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Rounds(thresholds=given_)


@pytest.mark.parametrize(("field", "value"), [("n_rounds", 0), ("n_rounds", 1.5), ("warmup", -1)])
def test_impossible_rounds_are_refused(field: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"Rounds: {field} must be a whole number"):
        Rounds(**{field: value})


def test_a_flag_that_only_one_schedule_reads_chooses_it() -> None:
    config, decisions = resolved({"n_rounds": "3"})
    assert config.schedule == "rounds" and decisions.source("schedule") == "implied"
    notes = [note for note in decisions.notes if "schedule" in note]
    assert notes == ['implied: schedule = "rounds" (--n_rounds is for it)']
    assert resolved({"fixed_criteria": False})[0].schedule == "iterative"
    given = resolved({"schedule": "rounds", "lr_prune": "0.1"})[1]
    assert given.source("schedule") == "command line" and not [note for note in given.notes if "schedule" in note]
    assert resolved()[0].schedule is None


def test_thresholds_set_the_limit_and_the_number_of_rounds() -> None:
    config, decisions = resolved({"thresholds": "30,60"})
    assert (config.schedule, config.n_rounds, config.pruning_limit) == ("rounds", 2, 0.6)
    assert config.thresholds == (0.3, 0.6) and decisions.source("thresholds") == "command line"
    assert {decisions.source(name) for name in ("n_rounds", "pruning_limit")} == {"implied"}
    again, _ = resolved({"thresholds": "0.3,0.6", "n_rounds": 2, "pruning_limit": 0.6, "schedule": "rounds"})
    assert (again.thresholds, again.pruning_limit) == (config.thresholds, 0.6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"n_rounds": 3, "schedule": "during"}, "--n_rounds is for --schedule rounds, not during"),
        ({"frequency": 3, "schedule": "rounds"}, "--frequency is for --schedule iterative, not rounds"),
        ({"n_rounds": 3, "group_size": 2}, "--n_rounds is for --schedule rounds and --group_size for"),
        ({"n_rounds": 3, "thresholds": (0.1, 0.2)}, "--n_rounds 3 and --thresholds 0.1,0.2, which are 2"),
        ({"pruning_limit": 0.9, "thresholds": (0.1, 0.2)}, "--pruning_limit 0.9 and --thresholds 0.1,0.2"),
    ],
)
def test_contradictions_are_one_line(flags: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolved(flags)
