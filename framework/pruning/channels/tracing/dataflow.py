"""Data flow: the operations on which the outputs depend, and the groups on every path from the input to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """Numbers of an operation's input and output tensors, and the first label of its weight's outputs, if any."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    made: tuple[int, ...] = ()


def unavoidable(
    operations: Sequence[Operation], start: int, ends: Iterable[int], group_of: dict[int, str]
) -> set[str]:
    """Return the names of the groups that are on all paths from tensor `start` to one of `ends`.

    `group_of` maps labels to groups. Where several tensors meet that depend on the input (a sum, a
    concatenation, a gate), only groups on the paths of all of them are unavoidable.
    """
    through: dict[int, frozenset[str]] = {start: frozenset()}
    for operation in operations:
        incoming = [through[number] for number in operation.inputs if number in through]
        if not incoming:
            continue
        common = frozenset.intersection(*incoming)
        produced = frozenset(group_of[label] for label in operation.made if label in group_of)
        for out in operation.outputs:
            through[out] = common | produced
    needed: set[str] = set()
    return needed.union(*(through[end] for end in ends if end in through))


def storage_of(tensor: Tensor) -> int:
    """Return an id of the tensor's storage; sparse tensors have no single storage, hence the tensor's own id."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


class Memory:
    """Records what every operation reads, returns and writes.

    A tensor and its views have one place in memory, since writing to one of them changes the others.
    """

    def __init__(self) -> None:
        #: for each operation: the numbers of the tensors read and returned, and the places written; None for
        #: returned if the result is a Python number
        self._steps: list[tuple[set[int], set[int] | None, set[int]]] = []
        #: number of a tensor -> its place
        self._place: dict[int, int] = {}
        #: storage of a tensor that existed before the pass -> its place
        self._before: dict[int, int] = {}
        self._new = itertools.count()

    def record(self, given: Sequence[tuple[int, Tensor]], results: Sequence[tuple[int, Tensor]]) -> None:
        """Record the next operation by the numbers and tensors of its arguments and results."""
        here: dict[int, int] = {}
        for number, tensor in given:
            storage = storage_of(tensor)
            if number not in self._place:
                self._place[number] = self._before.setdefault(storage, next(self._new))
            here[storage] = self._place[number]
        read = {number for number, _ in given}
        for number, tensor in results:
            if number not in self._place:
                place = here.get(storage_of(tensor))
                self._place[number] = next(self._new) if place is None else place
        made = {number for number, _ in results}
        self._steps.append((read, made or None, {self._place[number] for number in made & read}))

    def live(self, ends: Iterable[int]) -> set[int]:
        """Return the numbers of the operations on which the tensors `ends` may depend.

        They include those that return a Python number (`item`), on which any later operation may depend.
        """
        needed = set(ends)
        places = {self._place[end] for end in needed if end in self._place}
        steps = set()
        for step in reversed(range(len(self._steps))):
            read, made, written = self._steps[step]
            if made is None or not needed.isdisjoint(made) or not places.isdisjoint(written):
                steps.add(step)
                needed |= read
                places.update(self._place[number] for number in read)
        return steps
