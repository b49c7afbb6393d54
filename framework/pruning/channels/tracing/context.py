"""What the rules of the tracer share: the labels so far, the operations, and the table of rules."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.channels.tracing.attention_scale import Queries
from secateur.framework.pruning.channels.tracing.dataflow import Memory, Operation, storage_of
from secateur.framework.pruning.channels.tracing.labels import FIXED, Labels

Fields = dict[int, Tensor]


Arguments = Sequence[Any]


class Context:
    """The fields of every tensor of a forward pass, and the module it is in."""

    def __init__(self) -> None:
        self.labels = Labels()
        #: names of the modules that are running, the innermost last
        self.where: list[str] = [""]
        #: modules whose attributes follow a cut of their attention, and keep its scale
        self.adapted: set[str] = set()
        #: modules whose heads are to be cut and not the channels of each: number of heads, channels of one
        self.heads: dict[str, tuple[int, int]] = {}
        #: first label of each run
        self.starts: list[int] = []
        #: what has to make up for a changed scale of attention
        self.queries = Queries()
        #: runs of which a piece was used that is not one of equal ones
        self.doubtful: set[int] = set()
        #: storages of parameters
        self.storages: set[int] = set()
        #: what made channels, in forward order: a layer's name, or labels along the outputs of a weight
        self.made: list[str | Tensor] = []
        #: names of all operations in turn, and whether none of them reckons with a number of the code's
        self.path: list[str] = []
        self.numberless = True
        #: every operation on something that depends on the input
        self.operations: list[Operation] = []
        #: numbers of the network's outputs
        self.ends: list[int] = []
        #: what operations read and write, and the number of the one that runs
        self.memory = Memory()
        self.step = 0
        #: operations that split an axis whose first part has the channels, as was found out in an earlier pass;
        #: labels along the last part of the others; and operations that turned out to be split the wrong way
        self.first: set[int] = set()
        self.splits: list[tuple[int, Tensor]] = []
        self.misled: set[int] = set()
        #: numbers of the tensors that depend on the input
        self.flowing: set[int] = set()
        self._fields: dict[int, Fields] = {}
        self._count = itertools.count()
        #: id -> the tensor, not kept alive, and its number: an id is given again once its tensor is gone
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def number(self, tensor: Tensor) -> int:
        """A number that no other tensor of this pass has."""
        found = self._numbers.get(id(tensor))
        if found is None or found[0]() is not tensor:
            found = weakref.ref(tensor), next(self._count)
            self._numbers[id(tensor)] = found
        return found[1]

    def fields(self, tensor: Any) -> Fields:
        """A tensor's labels; none for what is no tensor."""
        return self._fields.get(self.number(tensor), {}) if isinstance(tensor, Tensor) else {}

    def give(self, tensor: Tensor, fields: Fields) -> None:
        """Set a tensor's labels."""
        self._fields[self.number(tensor)] = fields

    def flow(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], made: Sequence[str | Tensor] = ()) -> None:
        """Remember an operation, the next one from now on; the outputs of the first are the input."""
        incoming = tuple(self.number(one) for one in inputs)
        coming = tuple(self.number(one) for one in outputs)
        self.memory.record(tuple(zip(incoming, inputs, strict=True)), tuple(zip(coming, outputs, strict=True)))
        self.step += 1
        if self.step > 1 and not self.flowing.intersection(incoming):
            return  # it does not depend on the input
        self.flowing.update(coming)
        labels = tuple(int(part[0]) for part in made if not isinstance(part, str) and len(part))
        self.operations.append(Operation(incoming, coming, labels))

    def forget_labels(self) -> None:
        """Let go of the labels once the groups are known: there are several for each entry of a small network."""
        self.labels.forget()
        for noted in (self._fields, self.made, self.splits):
            noted.clear()

    def not_channels(self, x: Tensor) -> None:
        """Labels along the places of (batch, channels, places...): what split them off should have kept the axis
        of the channels."""
        for axis, labels in self.fields(x).items():
            if axis > 1:
                hits = (step for step, own in self.splits if bool(torch.isin(own, labels).any()))
                self.misled.update(hits)

    def runs_of(self, labels: Tensor) -> list[int]:
        """Numbers of the runs that hold these labels."""
        starts = torch.tensor(self.starts)
        found: list[int] = (
            torch.searchsorted(starts, labels[labels != FIXED], right=True).sub_(1).unique().tolist()
        )
        return found

    def is_seam(self, labels: Tensor, position: int) -> bool:
        """Whether what was put together along an axis meets there, or the axis ends."""
        if position in (0, len(labels)):
            return True
        before, after = (torch.searchsorted(torch.tensor(self.starts), labels[at], right=True)
                         for at in (position - 1, position))  # fmt: skip
        return bool(before != after) or bool((labels[position - 1 : position + 1] == FIXED).any())

    def produce(self, weight: Tensor, axis: int, out: Tensor, along: int, bias: Tensor | None = None) -> None:
        """A parameter, or a view of one, is contracted: its outputs lie along `axis`, and those of `out` along
        `along`."""
        labels = self.fields(weight).get(axis)
        if labels is None or not self.is_parameter(weight):
            return
        self.made.append(labels)
        if self.where[-1] not in self.adapted and (bias is None or self.is_parameter(bias) and bias.dim() == 1):
            shift = None if bias is None else self.fields(bias).get(0)
            self.queries.begin(self.number(out), out.shape, along, labels, shift)

    def follow_queries(self, name: str, func: Any, args: Arguments, kwargs: Any, out: Any) -> None:
        """Rows of queries go through an operation."""
        if name == "add" and isinstance(args[0], Tensor) and isinstance(args[1], Tensor) and args[1].dim() == 1:
            bias = self.fields(args[1]).get(0)
            if bias is not None and self.is_parameter(args[1]):
                self.queries.shift(self.number(args[0]), self.number(out), bias)
                return
        self.queries.follow(name, func, self.number, args, kwargs, out)

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether it is a parameter, or a view of one."""
        return storage_of(tensor) in self.storages

    def stay(self, labels: Tensor, why: str) -> None:
        """These labels are never cut, because of what happens here: if its result is used at all, or where the
        code would not even run."""
        fails = why.startswith("meets a constant")
        self.labels.stay(labels, self._located(why), None if fails else self.step)

    def reduced(self, labels: Tensor, what: str) -> None:
        """`what` reduces over these labels here."""
        self.labels.reduced(labels, self._located(f"reduced over: {what}"), self.step)

    def _located(self, text: str) -> str:
        return f"{text} at {self.where[-1]}" if self.where[-1] else text


#: (context, name of the operation, its arguments, its result)
Rule = Callable[[Context, str, Arguments, Any], None]


RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of some operations of ATen, named without their overloads."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def tensors(arguments: Any) -> list[Tensor]:
    """All tensors in nested sequences."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, (list, tuple)):
        return [tensor for one in arguments for tensor in tensors(one)]
    return []
