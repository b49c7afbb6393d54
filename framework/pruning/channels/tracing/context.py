"""The state that the rules of the tracer share: labels, recorded operations, and the table of rules."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.framework.pruning.channels.tracing.attention_scale import Queries
from secateur.framework.pruning.channels.tracing.dataflow import Dataflow, storage_of
from secateur.framework.pruning.channels.tracing.labels import FIXED, Labels

Fields = dict[int, Tensor]
Arguments = Sequence[Any]


class Context:
    """The fields of every tensor of a forward pass, and the names of the modules that are running."""

    def __init__(self) -> None:
        self.labels = Labels()
        #: names of the modules that are running, the innermost last
        self.where: list[str] = [""]
        #: attention modules with an adapter: it updates their attributes after a cut, and keeps the scale
        self.adapted: set[str] = set()
        #: modules of which whole heads are cut -> number of heads, channels per head
        self.heads: dict[str, tuple[int, int]] = {}
        #: rows of queries that compensate for a changed scale of attention
        self.queries = Queries()
        #: runs of which the code used a piece that is not one of equal pieces
        self.doubtful: set[int] = set()
        #: storages of parameters
        self.storages: set[int] = set()
        #: producers of channels in forward order: a layer's name, or the labels along the outputs of a weight
        self.made: list[str | Tensor] = []
        #: names of all operations in order, and whether none of them has a hard-coded number as an operand
        self.path: list[str] = []
        self.numberless = True
        #: numbers of the network's outputs
        self.ends: list[int] = []
        #: reads and writes of the operations
        self.dataflow = Dataflow()
        #: `first`: operations, found in an earlier pass, that split an axis with the channels on its first part;
        #: `splits`: labels along the last part of the others; `misled`: operations that were split the wrong way
        self.first: set[int] = set()
        self.splits: list[tuple[int, Tensor]] = []
        self.misled: set[int] = set()
        #: tensor -> its labels
        self._fields: MutableMapping[Tensor, Fields] = WeakTensorKeyDictionary()

    @property
    def step(self) -> int:
        """The number of the current operation."""
        return len(self.dataflow.operations)

    def fields(self, tensor: Any) -> Fields:
        """Return the labels of a tensor; an empty dict for any other object."""
        return self._fields.get(tensor, {}) if isinstance(tensor, Tensor) else {}

    def give(self, tensor: Tensor, fields: Fields) -> None:
        """Set a tensor's labels."""
        self._fields[tensor] = fields

    def carry(self, tensor: Tensor, place: Callable[[int], int | str | None]) -> Fields:
        """Return the labels of a tensor for the results of an operation.

        `place` maps an axis to that of the results; or to the reason why its labels are protected; or to None,
        and its labels are dropped.
        """
        fields: Fields = {}
        for axis, labels in self.fields(tensor).items():
            new = place(axis)
            if isinstance(new, str):
                self.stay(labels, new)
            elif new is not None:
                fields[new] = labels
        return fields

    def forget_labels(self) -> None:
        """Release the labels once the groups are known: they take several times the memory of a small network."""
        self.labels.forget()
        for records in (self._fields, self.made, self.splits):
            records.clear()

    def not_channels(self, x: Tensor) -> None:
        """Mark the splits that left labels on the spatial axes of x (batch, channels, spatial...) as misled.

        They should have left the labels on the channel axis.
        """
        for axis, labels in self.fields(x).items():
            if axis > 1:
                steps = (step for step, entries in self.splits if bool(torch.isin(entries, labels).any()))
                self.misled.update(steps)

    def runs_of(self, labels: Tensor) -> list[int]:
        """Return the numbers of the runs that contain these labels."""
        numbers: list[int] = self.labels.runs_of(labels[labels != FIXED]).unique().tolist()
        return numbers

    def order(self) -> list[str]:
        """Return the names of the modules whose weights were used, in forward order, called or not."""
        order: dict[str, None] = {}
        for made in self.made:
            if isinstance(made, str):
                order.setdefault(made)
            else:
                for number in self.runs_of(made[made != FIXED][:1]):
                    order.setdefault(self.labels.runs[number].tensor.rpartition(".")[0])
        return list(order)

    def is_seam(self, labels: Tensor, position: int) -> bool:
        """Whether concatenated parts of an axis meet at this position, or the axis begins or ends there."""
        if position in (0, len(labels)):
            return True
        around = labels[position - 1 : position + 1]
        before, after = self.labels.runs_of(around)
        return bool(before != after) or bool((around == FIXED).any())

    def produce(self, weight: Tensor, axis: int, out: Tensor, along: int, bias: Tensor | None = None) -> None:
        """Record the contraction of a parameter, or a view of one.

        The output dimension of the parameter is `axis`, and that of the result `out` is `along`.
        """
        labels = self.fields(weight).get(axis)
        if labels is None or not self.is_parameter(weight):
            return
        self.made.append(labels)
        if self.where[-1] not in self.adapted and (bias is None or self.is_parameter(bias) and bias.dim() == 1):
            shift = None if bias is None else self.fields(bias).get(0)
            self.queries.begin(out, along, labels, shift)

    def follow_queries(self, name: str, func: Any, args: Arguments, kwargs: Any, out: Any) -> None:
        """Propagate rows of queries through an operation."""
        if name == "add" and isinstance(args[0], Tensor) and isinstance(args[1], Tensor) and args[1].dim() == 1:
            bias = self.fields(args[1]).get(0)
            if bias is not None and self.is_parameter(args[1]):
                self.queries.shift(args[0], out, bias)
                return
        self.queries.follow(name, func, args, kwargs, out)

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter, or a view of one."""
        return storage_of(tensor) in self.storages

    def stay(self, labels: Tensor, why: str) -> None:
        """Protect these labels because of the current operation.

        The reason holds only if the outputs depend on the operation, except for a shape that would make it fail.
        """
        fails = why.startswith("meets a constant")
        self.labels.stay(labels, self._located(why), None if fails else self.step)

    def reduced(self, labels: Tensor, what: str) -> None:
        """Record that the current operation, `what`, reduces over these labels."""
        self.labels.stay(labels, self._located(f"reduced over: {what}"), self.step, reduces=True)

    def _located(self, text: str) -> str:
        return f"{text} at {self.where[-1]}" if self.where[-1] else text


#: (context, name of the operation, its arguments in the order of the schema, its result) -> the labels of every
#: tensor of the result, or a list with those of the first ones; None if the rule has no labels to set
Rule = Callable[[Context, str, Arguments, Any], Fields | list[Fields] | None]
R = TypeVar("R", bound=Rule)
RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[R], R]:
    """Register a function as the rule of some ATen operations, named without their overloads."""

    def register(function: R) -> R:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return register


def tensors(arguments: Any) -> list[Tensor]:
    """Return all tensors in nested sequences."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, (list, tuple)):
        return [tensor for argument in arguments for tensor in tensors(argument)]
    return []
