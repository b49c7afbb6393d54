"""Allowed values of the options of foolbox's attacks. Imports no torch: they are checked before loading."""

from collections.abc import Mapping
from typing import Any

from secateur.utils.limits import Limit, check_all, check_switch, number, optional, whole

POSITIVE = number(above=0)
LIMITS: dict[str, Limit] = {
    **dict.fromkeys(("steps", "binary_search_steps", "repeats"), whole(1)),
    "candidates": optional(whole(2)),  # None: all candidates
    **dict.fromkeys(("stepsize", "rel_stepsize", "initial_const", "init_epsilon"), POSITIVE),
    "abs_stepsize": optional(POSITIVE),  # None: no fixed step size
    **dict.fromkeys(("confidence", "overshoot"), number(least=0)),
    "gamma": number(above=0, below=1),
    **dict.fromkeys(("abort_early", "random_start", "across_channels", "check_trivial"), check_switch),
}


def check_attack_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an invalid value, such as zero steps; `make_attack` checks the names."""
    check_all(options, LIMITS, "attack_options: ")
