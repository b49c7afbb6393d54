"""The regulariser of a run: names, numbers by table, and contradictions."""

from typing import Any

import pytest

from secateur.framework.commands.assemble import build_loss
from secateur.framework.commands.dense_baseline import dense_config
from secateur.framework.settings.regulariser import check_regulariser, regulariser_name
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.training.regularisers.regulariser import Regularised, regulariser_of
from secateur.utils.errors import UsageError


@pytest.mark.parametrize(
    ("reg", "table", "name"),
    [
        (None, "element", None),
        ("none", "element", None),
        ("0", "structure", None),
        ("2", "element", "Hoyer"),
        ("4", "element", "TransformedL1"),
        ("2", "structure", "GroupHoyerSquare"),
        ("2", "cifar_group", "GroupHoyer"),
        ("GroupLasso", "element", "GroupLasso"),
    ],
)
def test_names_and_numbers(reg: str | None, table: str, name: str | None) -> None:
    assert regulariser_name(RunConfig(reg=reg, reg_table=table)) == name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"reg": "HoyerSqare"}, "unknown --reg 'HoyerSqare': did you mean 'HoyerSquare'"),
        ({"reg": "5"}, "--reg 5: the table element has 0 none, 1 L1"),
        ({"reg": "-1"}, "--reg -1: the table element has"),
        ({"reg": "3", "reg_table": "structure"}, "--reg 3: the table structure has 0 none, 1 GroupLasso, 2 Group"),
        ({"reg": "L1", "loss": "Hoyer"}, "--reg L1 and --loss Hoyer are two regularisers"),
        ({"decay": 0.1}, "--decay needs --reg"),
        ({"reg": "none", "reg_groups": "coupled"}, "--reg_groups needs --reg"),
        ({"loss": "L1", "reg_groups": "coupled"}, "--reg_groups: L1 has no groups"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        check_regulariser(RunConfig(**values))
    assert str(error.value).startswith(words)


def test_a_regulariser_is_added_to_the_chosen_loss() -> None:
    config = RunConfig(
        reg="GroupLasso", reg_groups="fibres", decay=0.25, loss="L0CrossEntropy", label_smoothing=0.1
    )
    loss = build_loss(config)
    found: Any = regulariser_of(loss)
    assert isinstance(loss, Regularised) and type(loss.loss).__name__ == "L0CrossEntropy"
    assert (type(found).__name__, found.decay, found.groups) == ("GroupLasso", 0.25, "fibres")
    alone: Any = build_loss(RunConfig(loss="HoyerSquare", decay=0.5))
    assert alone.decay == 0.5
    with pytest.raises(UsageError, match="--reg CrossEntropy: this loss is no regulariser"):
        build_loss(RunConfig(reg="CrossEntropy"))
    with pytest.raises(UsageError, match="--reg_groups: L1 has no groups"):
        build_loss(RunConfig(reg="L1", reg_groups="coupled"))


def test_the_dense_network_is_trained_without_regulariser() -> None:
    dense = dense_config(RunConfig(reg="1", reg_table="structure", decay=0.1, reg_groups="coupled"))
    assert (dense.reg, dense.reg_table, dense.decay, dense.reg_groups) == (None, "element", None, None)
    assert dense_config(RunConfig(loss="GroupHoyer", decay=0.1)).loss == "CrossEntropy"
