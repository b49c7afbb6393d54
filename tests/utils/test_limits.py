"""Checks of numbers and switches."""

import math
from typing import Any

import pytest

from secateur.utils.errors import UsageError
from secateur.utils.limits import check_all, check_switch, number, optional, whole


@pytest.mark.parametrize("value", [0, 2.0, True, "3", None])
def test_a_whole_number_is_an_integer_from_a_minimum_on(value: Any) -> None:
    whole(1)("steps", 1)
    with pytest.raises(UsageError) as error:
        whole(1)("steps", value)
    assert str(error.value) == f"steps must be a whole number >= 1, got {value!r}"


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "allowed"),
    [
        ({"least": 0, "below": 1}, [0, 0.5], [-0.1, 1], " >= 0 and < 1"),
        ({"above": 0, "most": 1}, [0.1, 1], [0, 1.1], " > 0 and <= 1"),
        ({}, [-5, 2.5], [], ""),
    ],
)
def test_a_number_is_finite_and_within_its_limits(
    limits: dict[str, float], inside: list[float], outside: list[float], allowed: str
) -> None:
    for value in inside:
        number(**limits)("share", value)
    for wrong in (*outside, True, "1", None, math.nan, math.inf):
        with pytest.raises(UsageError) as error:
            number(**limits)("share", wrong)
        assert str(error.value) == f"share must be a number{allowed}, got {wrong!r}"


def test_a_switch_is_a_boolean() -> None:
    check_switch("fold", False)
    with pytest.raises(UsageError, match="fold must be true or false, got 1"):
        check_switch("fold", 1)


def test_only_values_with_a_limit_are_checked() -> None:
    limits = {"steps": whole(1), "samples": optional(whole(1)), "share": number(least=0, below=1)}
    check_all({"steps": 1, "samples": None, "other": "any"}, limits)
    for values in ({"steps": 0}, {"steps": None}, {"samples": 0}, {"share": 1}):
        with pytest.raises(UsageError, match=f"^attack: {next(iter(values))} must be"):
            check_all(values, limits, "attack: ")
