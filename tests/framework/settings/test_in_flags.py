"""Errors of the library name arguments; the command line shows the flags."""

from collections.abc import Callable

import pytest

from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.averages import Tracking
from secateur.framework.schedules.base import During
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.settings.run_config import in_flags
from secateur.utils.errors import UsageError


@pytest.mark.parametrize(
    ("make", "argument", "plain", "shown"),
    [
        (lambda: During(delay=5).plan(0.9, 2), "delay", "with delay 5", "with --prune_delay 5"),
        (lambda: Iterative(per_step=-1), "per_step", "per_step must", "--prune_per_iteration must"),
        (lambda: Iterative(momentum=1.0), "momentum", "momentum must", "--pruning_momentum must"),
        (lambda: PruneOptions(keep_share=1), "keep_share", "keep_share must", "--keep_share must"),
        (lambda: Tracking(batches=0), "batches", "batches must", "--track_batches must"),
    ],
)
def test_the_argument_of_an_error_is_shown_as_its_flag(
    make: Callable[[], object], argument: str, plain: str, shown: str
) -> None:
    with pytest.raises(UsageError) as raised:
        make()
    assert raised.value.argument == argument
    assert plain in str(raised.value) and "--" not in str(raised.value)
    assert shown in in_flags(raised.value)


def test_the_argument_of_a_flag_of_another_name_is_shown_as_the_flag() -> None:
    assert in_flags(UsageError("rank_inputs: a", argument="rank_inputs")) == "--outer_layer_pruning: a"


def test_other_errors_are_shown_as_they_are() -> None:
    assert in_flags(UsageError("delay of nothing")) == "delay of nothing"
    assert in_flags(UsageError("alpha must be", argument="nothing of ours")) == "alpha must be"
    assert in_flags(UsageError("--scope layer", argument="scope")) == "--scope layer"
