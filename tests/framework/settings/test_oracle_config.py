"""Which criterions a study takes."""

import pytest

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.oracle_config import chosen_criterions
from secateur.utils.errors import UsageError


def test_all_are_the_channel_criterions_and_the_others_are_named_with_a_reason() -> None:
    names, left_out = chosen_criterions(("all",))
    assert sorted([*names, *left_out]) == registry.names("criterions")
    assert {"TaylorGate", "SNAP", "OBD", "L1", "RandomChannel"} <= set(names)
    assert all(registry.describe("criterions", name).granularity == "channel" for name in names)
    assert left_out["EmptyCrit"] == "prunes nothing"
    assert left_out["SNIP"] == "ranks weights"
    assert left_out["CNIP"] == "ranks weights and channels together"
    assert "TickTock" in left_out["GateDecorators"]
    assert {"Oracle", "Combinatorial"} <= set(left_out)


def test_names_come_in_their_order_once_each_with_commas_or_repeated() -> None:
    assert chosen_criterions(("SNAP,TaylorGate", "SNAP", " OBD ")) == (["SNAP", "TaylorGate", "OBD"], {})


def test_what_all_leaves_out_can_be_asked_for() -> None:
    names, left_out = chosen_criterions(("all", "Combinatorial"))
    assert "Combinatorial" in names and "Combinatorial" not in left_out
    assert chosen_criterions(("Combinatorial",)) == (["Combinatorial"], {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("TaylorGat", "'TaylorGat': did you mean 'TaylorGate'?"),
        ("al", "did you mean 'all'?"),
        ("SNAP,,SNIP", "--criterions SNIP: it ranks weights"),
        ("Oracle", "--criterions Oracle: it is the reference of the comparison"),
        ("EmptyCrit", "--criterions EmptyCrit: it prunes nothing"),
        ("GateDecorators", "--criterions GateDecorators: it scores layers of the trainer TickTock"),
        (" ,", "--criterions must be comma-separated names, or all"),
    ],
)
def test_what_cannot_be_taken_is_said(given: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_criterions((given,))
    assert expected in str(caught.value)
