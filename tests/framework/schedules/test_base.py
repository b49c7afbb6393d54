"""When pruning happens, and down to which sparsity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.framework.schedules.base import (
    ITERATIVE,
    After,
    Before,
    During,
    Never,
    Schedule,
    chosen,
    spread,
    targets,
)
from secateur.utils.errors import UsageError

LIMITS = st.floats(0, 1, exclude_min=True, exclude_max=True)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0.98, [0.5, 0.74, 0.86, 0.92, 0.95, 0.965, 0.98]),
        (0.93, [0.5, 0.715, 0.8225, 0.87625, 0.903125, 0.9165625, 0.93]),
    ],
)
def test_the_published_tables(limit: float, expected: list[float]) -> None:
    assert targets(limit, ITERATIVE) == pytest.approx(expected, abs=1e-12)


@given(LIMITS, st.integers(1, 60))
def test_targets_rise_to_the_limit_and_never_overshoot(limit: float, steps: int) -> None:
    found = targets(limit, steps)
    assert len(found) == steps
    assert found[-1] == limit
    assert found == sorted(found)
    assert found[0] >= 0
    if steps > 1:
        assert found[0] == pytest.approx(0.5 if limit > 0.5 else limit / 2)


def test_a_limit_below_a_half_starts_below_it() -> None:
    assert targets(0.3, 4) == pytest.approx([0.15, 0.225, 0.2625, 0.3])
    assert targets(0.5, 3) == pytest.approx([0.25, 0.375, 0.5])


@given(LIMITS, st.integers(0, 50))
def test_before_training_all_steps_are_due_at_once(limit: float, epochs: int) -> None:
    assert Before(3).plan(limit, epochs) == {-1: targets(limit, 3)}
    assert Before().plan(limit, epochs) == {-1: [limit]}


def test_never_prunes_never() -> None:
    assert Never().plan(0.5, 10) == {}
    assert Never().one_shot(0.5) == []


def test_during_training_events_lie_as_in_the_original() -> None:
    plan = During(delay=4, freq=4).plan(0.98, epochs=80)
    assert list(plan) == [8, 12, 16, 20, 24, 28, 32]
    assert [due for (due,) in plan.values()] == targets(0.98, 7)
    assert list(During(0, 1).plan(0.9, epochs=80)) == [1, 2, 3, 4, 5, 6, 7]
    assert During(69, 1, steps=1).plan(0.9, epochs=80) == {70: [0.9]}


@given(LIMITS, st.integers(0, 20), st.integers(1, 8), st.integers(1, 12), st.integers(1, 60))
def test_short_runs_compress_and_still_reach_the_limit(
    limit: float, delay: int, freq: int, steps: int, epochs: int
) -> None:
    schedule = During(delay, freq, steps)
    if delay + freq > epochs - 1:
        with pytest.raises(UsageError, match=f"first pruning comes after {delay + freq + 1} epochs"):
            schedule.plan(limit, epochs)
        return
    plan = schedule.plan(limit, epochs)
    assert 1 <= len(plan) <= steps
    assert all(delay + freq <= moment < epochs and (moment - delay) % freq == 0 for moment in plan)
    assert [due for several in plan.values() for due in several] == targets(limit, steps)
    assert max(map(len, plan.values())) - min(map(len, plan.values())) <= 1
    if len(plan) > 1:
        assert max(plan) < epochs - 1  # what is left trains for an epoch at least


def test_where_epochs_are_few_one_moment_takes_several_of_the_steps() -> None:
    three = During(0, 1).plan(0.98, epochs=5)
    assert {moment: [round(due, 3) for due in several] for moment, several in three.items()} == {
        1: [0.5, 0.74], 2: [0.86, 0.92], 3: [0.95, 0.965, 0.98],
    }  # fmt: skip
    assert During(0, 1).plan(0.98, epochs=2) == {1: targets(0.98, 7)}


def test_the_last_third_of_a_short_run_tunes() -> None:
    assert list(During(1, 1).plan(0.98, epochs=6)) == [2, 3]
    assert list(During(4, 4).plan(0.98, epochs=20)) == [8, 12]
    assert list(During(14, 4).plan(0.98, epochs=20)) == [18]  # asked for so late
    assert list(During(50, 1).plan(0.98, epochs=80)) == [51, 52, 53, 54, 55, 56, 57]


def test_the_last_epoch_prunes_only_where_there_is_no_other() -> None:
    assert list(During(0, 1).plan(0.9, epochs=2)) == [1]
    assert list(During(0, 1).plan(0.9, epochs=3)) == [1]
    assert list(During(0, 1).plan(0.9, epochs=4)) == [1, 2]


@pytest.mark.parametrize(("epochs", "moment"), [(1, 0), (2, 0), (5, 3), (8, 6), (80, 69), (160, 139)])
def test_after_training_leaves_an_eighth_to_tune(epochs: int, moment: int) -> None:
    assert After().plan(0.9, epochs) == {moment: [0.9]}


def test_after_training_at_an_epoch_of_choice() -> None:
    assert After(delay=69, freq=1).plan(0.9, epochs=80) == {70: [0.9]}
    assert After(delay=3).plan(0.9, epochs=80) == {4: [0.9]}
    assert After(freq=5, steps=2).plan(0.9, epochs=80) == {5: [0.5, 0.9]}
    with pytest.raises(UsageError, match="end of epoch 70, and epochs is 70"):
        After(delay=69, freq=1).plan(0.9, epochs=70)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Before(0), "Before: steps must be a whole number >= 1, got 0"),
        (lambda: During(freq=0), "During: freq must be a whole number >= 1, got 0"),
        (lambda: During(delay=-1), "During: delay must be a whole number >= 0, got -1"),
        (lambda: After(freq=0), "After: freq must be a whole number >= 1"),
    ],
)
def test_impossible_schedules_are_refused_when_made(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Before(), [0.9]),
        (Before(3), [0.5, 0.7, 0.9]),
        (During(4, 4, 3), [0.5, 0.7, 0.9]),
        (After(), [0.9]),
    ],
)
def test_a_call_outside_a_run_does_all_steps(schedule: Schedule, expected: list[float]) -> None:
    assert schedule.one_shot(0.9) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("own", "when", "delay", "freq", "steps", "expected"),
    [
        (Before(7), None, None, None, 5, Before(7)),
        (Before(7), None, None, None, 0, Before(2)),
        (Before(1), None, None, None, 5, Before(1)),
        (During(4, 4), None, None, None, 5, During(4, 4, 7)),
        (During(4, 4), None, 2, None, 1, During(2, 4, 3)),
        (Before(1), "during", None, 3, 5, During(0, 3, 7)),
        (During(4, 4), "before", None, None, 5, Before(7)),
        (Before(1), "after", 69, 1, 5, After(69, 1, 1)),
        (After(), None, 69, 1, 5, After(69, 1)),
        (Never(), None, None, None, 5, Never()),
    ],
)
def test_what_the_user_asks_for_changes_the_criterions_own_schedule(
    own: Schedule, when: str | None, delay: int | None, freq: int | None, steps: int, expected: Schedule
) -> None:
    assert chosen(own, when, delay, freq, steps) == expected


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.98])
@pytest.mark.parametrize("steps", [1, 2, 100])
def test_exponential_targets_keep_the_same_share_in_each_step(limit: float, steps: int) -> None:
    found = targets(limit, steps, "exponential")
    assert len(found) == steps and found[-1] == limit
    left = [1.0, *(1 - target for target in found)]
    shares = [after / before for before, after in zip(left, left[1:], strict=False)]
    assert shares == pytest.approx([(1 - limit) ** (1 / steps)] * steps)


def test_the_spacing_of_targets_goes_along_with_what_the_user_asks_for() -> None:
    own = Before(steps=100, spacing="exponential")
    assert own.plan(0.9, 5) == {-1: targets(0.9, 100, "exponential")}
    assert own.one_shot(0.9) == targets(0.9, 100, "exponential")
    assert chosen(own, None, None, None, 2).plan(0.9, 5) == {-1: targets(0.9, 4, "exponential")}
    during = chosen(own, "during", 0, 1, 98).plan(0.9, 6)
    assert sum(during.values(), []) == targets(0.9, 100, "exponential")
    assert chosen(own, "after", None, None, 0) == After(None, None, 2, "exponential")


def test_an_unknown_spacing_is_refused() -> None:
    with pytest.raises(UsageError, match="Before: unknown spacing 'exponentail': did you mean 'exponential'"):
        Before(steps=3, spacing="exponentail")


@given(due=st.integers(1, 40), moments=st.integers(1, 40))
def test_targets_are_spread_in_order_and_evenly(due: int, moments: int) -> None:
    found = spread(list(range(due)), list(range(10, 10 + moments)))
    assert sum(found.values(), []) == list(range(due))
    sizes = [len(each) for each in found.values()]
    assert len(found) == min(due, moments) and max(sizes) - min(sizes) <= 1
    assert list(found) == list(range(10, 10 + len(found)))


def test_even_targets_meet_the_limit_with_any_number_of_events() -> None:
    assert During(even=True).one_shot(0.21) == [0.01, 0.06, 0.11, 0.16, 0.21]
    assert During(even=True).plan(0.21, 20) == {1: [0.01], 2: [0.06], 3: [0.11], 4: [0.16], 5: [0.21]}
    assert During(even=True).plan(0.21, 4) == {1: [0.01, 0.06], 2: [0.11, 0.16, 0.21]}
    assert chosen(During(even=True), None, 1, 2, 5) == During(1, 2, even=True)
