"""Allowed values of the options of foolbox's attacks. Imports no torch: they are checked before loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.utils.limits import check_number, check_switch, check_whole

#: integer options, and their minimum
LEAST_VALUES = {"steps": 1, "binary_search_steps": 1, "repeats": 1, "candidates": 2}
#: options that are numbers, and their limits
POSITIVE = ("stepsize", "rel_stepsize", "abs_stepsize", "initial_const", "init_epsilon")
NUMBERS: dict[str, dict[str, float]] = {
    **dict.fromkeys(POSITIVE, {"above": 0}),
    **dict.fromkeys(("confidence", "overshoot"), {"least": 0}),
    "gamma": {"above": 0, "below": 1},
}
BOOLEAN_OPTIONS = ("abort_early", "random_start", "across_channels", "check_trivial")
#: options that may be None: all candidates, no fixed step size
MAY_BE_NONE = ("candidates", "abs_stepsize", "channel_axis")


def check_attack_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an invalid value, such as zero steps; `make_attack` checks the names."""
    for name, value in options.items():
        where = f"attack_options: {name}"
        if value is None and name in MAY_BE_NONE:
            continue
        if name in LEAST_VALUES:
            check_whole(where, value, LEAST_VALUES[name])
        elif name in NUMBERS:
            check_number(where, value, **NUMBERS[name])
        elif name in BOOLEAN_OPTIONS:
            check_switch(where, value)
