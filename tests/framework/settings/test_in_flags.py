"""Errors of the library name arguments; the command line shows the flags."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.framework.plugins.registry import FOLDERS
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.averages import Tracking
from secateur.framework.schedules.base import During
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.settings.run_config import FLAGS, as_written, in_flags
from secateur.utils.errors import UsageError
from tests import ROOT

NAMED = re.compile(rf"--(no_)?({'|'.join(FLAGS)})\b")


@pytest.mark.parametrize(
    ("make", "argument", "plain", "shown"),
    [
        (
            lambda: During(delay=5).plan(0.9, 2),
            ("delay", "freq"),
            "with delay 5 and freq 1",
            "with --prune_delay 5 and --prune_freq 1",
        ),
        (
            lambda: Iterative(per_step=2, group_size=3),
            ("per_step", "group_size"),
            "per_step must be at least group_size",
            "--prune_per_iteration must be at least --group_size",
        ),
        (lambda: Iterative(per_step=-1), "per_step", "per_step must", "--prune_per_iteration must"),
        (lambda: Iterative(momentum=1.0), "momentum", "momentum must", "--pruning_momentum must"),
        (lambda: PruneOptions(keep_share=1), "keep_share", "keep_share must", "--keep_share must"),
        (lambda: Tracking(batches=0), "batches", "batches must", "--track_batches must"),
    ],
)
def test_the_argument_of_an_error_is_shown_as_its_flag(
    make: Callable[[], object], argument: str | tuple[str, ...], plain: str, shown: str
) -> None:
    with pytest.raises(UsageError) as raised:
        make()
    assert raised.value.argument == argument
    assert plain in str(raised.value) and "--" not in str(raised.value)
    assert shown in in_flags(raised.value)


def test_the_argument_of_a_flag_of_another_name_is_shown_as_the_flag() -> None:
    assert in_flags(UsageError("rank_inputs: a", argument="rank_inputs")) == "--outer_layer_pruning: a"


def test_a_switch_that_is_off_is_shown_as_the_flag_that_switches_it_off() -> None:
    error = UsageError("per_step cannot be combined with masking=False", argument=("per_step", "masking"))
    assert in_flags(error) == "--prune_per_iteration cannot be combined with --no_masking"


def test_a_flag_of_another_program_is_shown_as_it_was_written() -> None:
    written = {"frequency": "pruning_step", "learning_rate": "lr"}
    error = UsageError("frequency must be above --learning_rate", argument="frequency")
    assert in_flags(error, written) == "--pruning_step must be above --lr"
    other = UsageError("--learning_rate_x and --no_learning_rate and learning_rate")
    assert in_flags(other, written) == str(other)
    with pytest.raises(UsageError, match="^--lr is wrong$"), as_written(written):
        raise UsageError("--learning_rate is wrong")


COMMAND_LINE = ("framework/settings/", "framework/commands/")
LIBRARY = [
    path
    for folder in ("framework", "utils", *FOLDERS)
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.relative_to(ROOT).as_posix().startswith(COMMAND_LINE)
]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_texts_of_the_library_name_no_flags(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        if isinstance(node.body[0], ast.Expr)
    }
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs]
    named = {node.lineno: node.value for node in texts if NAMED.search(str(node.value))}
    assert named == {}


def test_other_errors_are_shown_as_they_are() -> None:
    assert in_flags(UsageError("delay of nothing")) == "delay of nothing"
    assert in_flags(UsageError("alpha must be", argument="nothing of ours")) == "alpha must be"
    assert in_flags(UsageError("--scope layer", argument="scope")) == "--scope layer"
