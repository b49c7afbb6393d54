"""What the outputs of a network depend on: which operations, and which groups lie on every path from the input."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


def storage_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor from others'; sparse ones have none that could be asked for."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


class Memory:
    """What every operation reads, makes and writes: a tensor and its views lie at one place, since writing to one
    of them changes the others."""

    def __init__(self) -> None:
        #: numbers of the tensors read and made, and places written, for each operation in turn; made is None where
        #: a plain number comes out
        self._steps: list[tuple[set[int], set[int] | None, set[int]]] = []
        #: number of a tensor -> its place
        self._place: dict[int, int] = {}
        #: storage of a tensor that was there before -> its place
        self._before: dict[int, int] = {}
        self._new = itertools.count()

    def record(self, given: Sequence[tuple[int, Tensor]], results: Sequence[tuple[int, Tensor]]) -> None:
        """The next operation, by the tensors that go in and come out with their numbers."""
        here: dict[int, int] = {}
        for number, tensor in given:
            storage = storage_of(tensor)
            if number not in self._place:
                self._place[number] = self._before.setdefault(storage, next(self._new))
            here[storage] = self._place[number]
        read = {number for number, _ in given}
        for number, tensor in results:
            if number not in self._place:
                found = here.get(storage_of(tensor))
                self._place[number] = next(self._new) if found is None else found
        made = {number for number, _ in results}
        self._steps.append((read, made or None, {self._place[number] for number in made & read}))

    def live(self, ends: Iterable[int]) -> set[int]:
        """Numbers of the operations on which the tensors `ends` may depend, and of those that give the code a
        plain number (`item`), on which anything may."""
        needed = set(ends)
        places = {self._place[end] for end in needed if end in self._place}
        found = set()
        for step in reversed(range(len(self._steps))):
            read, made, written = self._steps[step]
            if made is None or not needed.isdisjoint(made) or not places.isdisjoint(written):
                found.add(step)
                needed |= read
                places.update(self._place[number] for number in read)
        return found
