"""What a network was when it was dense: the reference of every sparsity, and what a checkpoint needs.

The record lies on the model itself, so that it goes along with `copy.deepcopy`, and it is the one place that
knows which of the original channels are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateur.framework.network.layers import named_tensors

_ATTRIBUTE = "_secateur_lineage"


@dataclass
class Lineage:
    """`dense` has the shape of every tensor before the first cut; `kept` the original indices still there,
    per (tensor, dimension), for the dimensions that were cut."""

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dense: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    #: multiply-adds of one sample of this shape in the dense network, once they were counted
    dense_macs: dict[tuple[int, ...], int] = field(default_factory=dict)
    #: names of the layers whose outputs are the model's outputs; None until they were traced
    output_layers: tuple[str, ...] | None = None

    def record_cut(self, tensor: str, dim: int, index: Tensor) -> None:
        """Compose: `index` holds the positions, among those left, that stay along `dim` of `tensor`."""
        before = self.kept.get((tensor, dim))
        self.kept[tensor, dim] = index.cpu().clone() if before is None else before[index.cpu()]

    def expected(self, tensor: str) -> tuple[int, ...] | None:
        """The shape that the cuts so far have left of a tensor; None for one it does not know."""
        shape = self.dense.get(tensor)
        if shape is None:
            return None
        return tuple(len(self.kept.get((tensor, dim), range(size))) for dim, size in enumerate(shape))


def has_lineage(model: nn.Module) -> bool:
    """Whether anything was recorded of this model yet."""
    return _ATTRIBUTE in model.__dict__


def was_pruned(model: nn.Module) -> bool:
    """Whether anything was cut or masked; quick enough for every batch."""
    found: Lineage | None = model.__dict__.get(_ATTRIBUTE)
    if found is not None and found.kept:
        return True
    return any(name.startswith("mask_of_") for module in model.modules() for name in module._buffers)


def set_lineage(model: nn.Module, lineage: Lineage) -> None:
    """Give the model a record, for instance that of the model it is a copy of."""
    model.__dict__[_ATTRIBUTE] = lineage


def lineage_of(model: nn.Module) -> Lineage:
    """The model's record; a model without one is taken as dense as it stands.

    A user may still swap layers, as one does for new classes: what is new counts as dense from then on, and the
    network is no longer the architecture it was built as.
    """
    found: Lineage | None = model.__dict__.get(_ATTRIBUTE)
    if found is None:
        found = Lineage(dense=_shapes(model))
        set_lineage(model, found)
    else:
        _follow_swaps(found, _shapes(model))
    return found


def _follow_swaps(lineage: Lineage, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Forget tensors that are gone, and take as dense those that are not what the cuts left."""
    swapped = [name for name, shape in shapes.items() if lineage.expected(name) != shape]
    gone = lineage.dense.keys() - shapes.keys()
    if not swapped and not gone:
        return
    for name in {*swapped, *gone}:
        lineage.dense.pop(name, None)
        for key in [key for key in lineage.kept if key[0] == name]:
            del lineage.kept[key]
    lineage.dense = {name: lineage.dense.get(name, shape) for name, shape in shapes.items()}
    lineage.name, lineage.options, lineage.output_layers, lineage.dense_macs = None, {}, None, {}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in named_tensors(model).items()
        if not name.rpartition(".")[2].startswith("mask_of_")
    }


@contextmanager
def same_network(model: nn.Module) -> Iterator[None]:
    """Inside, layers may gain and lose tensors of their own, such as gates, without becoming another network.

    What is new counts as dense in the shape it has afterwards; nothing else may change.
    """
    lineage = lineage_of(model)
    yield
    shapes = _shapes(model)
    for name in lineage.dense.keys() - shapes.keys():
        del lineage.dense[name]
        for key in [key for key in lineage.kept if key[0] == name]:
            del lineage.kept[key]
    for name, shape in shapes.items():
        lineage.dense.setdefault(name, shape)


#: (tensor name, dimension) -> positions that stay, ascending
Staying = dict[str, dict[int, Tensor]]


Companion = MutableMapping[str, Tensor] | nn.Module
