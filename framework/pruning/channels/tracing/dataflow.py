"""Data flow: the operations on which the outputs depend, and the groups on every path from the input to them."""

import itertools
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Operation(NamedTuple):
    """An operation of the forward pass; tensors are given by their numbers."""

    read: set[int]
    #: empty if the result is a Python number
    returned: set[int]
    #: places in memory of the tensors that are changed
    written: set[int]
    #: the first label of the outputs of each weight that is used
    made: tuple[int, ...]


def storage_of(tensor: Tensor) -> int:
    """Return an id of the tensor's storage; sparse tensors have no single storage, hence the tensor's own id."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


class Dataflow:
    """Records what every operation reads, returns and writes; the first one returns the network's input.

    A tensor and its views have one place in memory, since writing to one of them changes the others.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        #: numbers of the tensors that depend on the input
        self.flowing: set[int] = set()
        #: tensor -> its number, since Python reuses the id of a deleted tensor; number -> its place
        self._numbers: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self._place: dict[int, int] = {}
        #: storage of a tensor that existed before the pass -> its place
        self._before: dict[int, int] = {}
        self._new = itertools.count()

    def number(self, tensor: Tensor) -> int:
        """Return the number of a tensor, which is unique within this pass."""
        return self._numbers.setdefault(tensor, next(self._new))

    def record(self, given: Sequence[Tensor], results: Sequence[Tensor], made: Sequence[int] = ()) -> None:
        """Record the next operation: its arguments, its results, and the labels that it produces."""
        here: dict[int, int] = {}
        read, returned = ({self.number(tensor): tensor for tensor in part} for part in (given, results))
        for number, tensor in read.items():
            storage = storage_of(tensor)
            if number not in self._place:
                self._place[number] = self._before.setdefault(storage, next(self._new))
            here[storage] = self._place[number]
        for number, tensor in returned.items():
            if number not in self._place:
                place = here.get(storage_of(tensor))
                self._place[number] = next(self._new) if place is None else place
        if not self.operations or not self.flowing.isdisjoint(read):
            self.flowing.update(returned)
        written = {self._place[number] for number in returned.keys() & read}
        self.operations.append(Operation(set(read), set(returned), written, tuple(made)))

    def live(self, ends: Iterable[int]) -> set[int]:
        """Return the numbers of the operations on which the tensors `ends` may depend.

        They include those that return a Python number (`item`), on which any later operation may depend.
        """
        needed = set(ends)
        places = {self._place[end] for end in needed if end in self._place}
        steps = set()
        for step, operation in reversed([*enumerate(self.operations)]):
            read, returned, written, _ = operation
            if not returned or not needed.isdisjoint(returned) or not places.isdisjoint(written):
                steps.add(step)
                needed |= read
                places.update(self._place[number] for number in read)
        return steps

    def unavoidable(self, ends: Iterable[int], group_of: Mapping[int, str]) -> set[str]:
        """Return the names of the groups that are on all paths from the input to one of the tensors `ends`.

        `group_of` maps labels to groups. Where several tensors meet that depend on the input (a sum, a
        concatenation, a gate), only groups on the paths of all of them are unavoidable.
        """
        through: dict[int, frozenset[str]] = dict.fromkeys(self.operations[0].returned, frozenset())
        for operation in self.operations:
            incoming = [through[number] for number in operation.read if number in through]
            if incoming:
                produced = frozenset(group_of[label] for label in operation.made if label in group_of)
                through |= dict.fromkeys(operation.returned, frozenset.intersection(*incoming) | produced)
        needed: set[str] = set()
        return needed.union(*(through[end] for end in ends if end in through))
