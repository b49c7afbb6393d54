"""Lineage: the shapes of a network when it was dense, the reference of every sparsity, and the kept indices.

It is an attribute of the model, so that `copy.deepcopy` copies it and a checkpoint contains it, and the only
record of the original channels that remain.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import named_tensors
from secateur.framework.network.masks import PREFIX

#: attribute of the model
LINEAGE = "_secateur_lineage"
#: tensor name -> dimension -> kept positions, ascending
KeptIndices = dict[str, dict[int, Tensor]]


@dataclass
class Lineage:
    """The dense shapes of a network's tensors, and the original indices that remain after cuts.

    `dense` has the shape of every tensor before the first cut. `kept` has the remaining original indices, per
    (tensor, dimension), for the dimensions that were cut.
    """

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dense: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    #: shape of a sample -> its multiply-adds in the dense network, if they were counted
    dense_macs: dict[tuple[int, ...], int] = field(default_factory=dict)
    #: names of the layers whose outputs are the model's outputs; None before they are traced
    output_layers: tuple[str, ...] | None = None

    def record_cut(self, kept_indices: KeptIndices) -> None:
        """Compose with a cut, which keeps these of the current positions."""
        for tensor, dims in kept_indices.items():
            for dim, index in dims.items():
                before = self.kept.get((tensor, dim))
                self.kept[tensor, dim] = index.cpu().clone() if before is None else before[index.cpu()]

    def follow(self, shapes: Mapping[str, tuple[int, ...]], new: Set[str] = frozenset()) -> None:
        """Drop tensors without a shape, and record those that are `new` or unknown as dense."""
        self.dense = {
            name: shape if name in new else self.dense.get(name, shape) for name, shape in shapes.items()
        }
        self.kept = {key: index for key, index in self.kept.items() if key[0] in shapes.keys() - new}

    def left_since(self, kept: Mapping[tuple[str, int], Tensor], tensor: str, dim: int) -> Tensor | None:
        """Return the positions, at the time of an earlier `kept`, of what remains; None if nothing was cut."""
        now = self.kept.get((tensor, dim))
        if now is None:
            return None
        return torch.searchsorted(kept.get((tensor, dim), torch.arange(self.dense[tensor][dim])), now)

    def expected(self, tensor: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor after the recorded cuts; None for an unknown tensor."""
        shape = self.dense.get(tensor)
        if shape is None:
            return None
        return tuple(len(self.kept.get((tensor, dim), range(size))) for dim, size in enumerate(shape))


def has_lineage(model: nn.Module) -> bool:
    """Whether the model has a lineage."""
    return LINEAGE in model.__dict__


def was_pruned(model: nn.Module) -> bool:
    """Whether the model was cut or masked; fast enough to be called for every batch."""
    lineage: Lineage | None = model.__dict__.get(LINEAGE)
    if lineage is not None and lineage.kept:
        return True
    return any(name.startswith(PREFIX) for module in model.modules() for name in module._buffers)


def set_lineage(model: nn.Module, lineage: Lineage) -> None:
    """Set the lineage of a model, for instance to that of the model it is a copy of."""
    model.__dict__[LINEAGE] = lineage


def lineage_of(model: nn.Module) -> Lineage:
    """Return the lineage of a model; for a model without one, it is created from the current shapes.

    If the user has replaced layers since, for instance for new classes, the new tensors count as dense, and the
    lineage no longer has the name and options of a built-in architecture.
    """
    lineage: Lineage | None = model.__dict__.get(LINEAGE)
    shapes = _shapes(model)
    if lineage is None:
        lineage = Lineage(dense=shapes)
        set_lineage(model, lineage)
    swapped = {name for name, shape in shapes.items() if lineage.expected(name) != shape}
    if swapped or lineage.dense.keys() - shapes.keys():
        lineage.follow(shapes, swapped)
        lineage.name, lineage.options, lineage.output_layers, lineage.dense_macs = None, {}, None, {}
    return lineage


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in named_tensors(model).items()
        if not name.rpartition(".")[2].startswith(PREFIX)
    }


@contextmanager
def same_network(model: nn.Module) -> Iterator[None]:
    """Allow the body to add tensors to layers or remove them, such as gates, without resetting the lineage.

    On exit, new tensors are recorded as dense with their current shapes, and removed ones are dropped. Without
    this context, `lineage_of` takes such a change for a replaced layer, and forgets the name of the architecture.
    The body must not change the shapes of other tensors.

    Args:
        model: The network.

    Returns:
        A context manager.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import build, same_network
        >>> from secateur.framework.network.lineage import lineage_of
        >>> model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
        >>> with same_network(model):
        ...     model.gate = nn.Parameter(torch.ones(3))
        >>> lineage_of(model).name, lineage_of(model).dense["gate"]
        ('LeNet5', (3,))
    """
    lineage = lineage_of(model)
    yield
    lineage.follow(_shapes(model))


#: a mapping from tensor name to tensor, or a module like the model, that is cut together with it
Companion = MutableMapping[str, Tensor] | nn.Module
