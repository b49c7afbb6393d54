"""Which groups every path from the input to the output goes through: without the others something still flows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """Numbers of the tensors that go in and come out, and the first label of the outputs of its weight, if any."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    made: tuple[int, ...] = ()


def unavoidable(
    operations: Sequence[Operation], start: int, ends: Iterable[int], group_of: dict[int, str]
) -> set[str]:
    """Names of the groups that lie on all paths from tensor `start` to one of `ends`.

    `group_of` maps labels to groups. Where several tensors meet that depend on the input (a sum, a
    concatenation, a gate), what only one of them came through can be avoided.
    """
    through: dict[int, frozenset[str]] = {start: frozenset()}
    for operation in operations:
        incoming = [through[one] for one in operation.inputs if one in through]
        if not incoming:
            continue
        common = frozenset.intersection(*incoming)
        own = frozenset(group_of[label] for label in operation.made if label in group_of)
        for out in operation.outputs:
            through[out] = common | own
    found: set[str] = set()
    return found.union(*(through[end] for end in ends if end in through))
