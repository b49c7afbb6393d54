"""What a network was when it was dense: the reference of every sparsity, and what a checkpoint needs.

The record lies on the model itself, so that it goes along with `copy.deepcopy`, and it is the one place that
knows which of the original channels are left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_ATTRIBUTE = "_secateur_lineage"


@dataclass
class Lineage:
    """`dense` has the shape of every tensor before the first cut; `kept` the original indices still there,
    per (tensor, dimension), for the dimensions that were cut."""

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dense: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    #: names of the layers whose outputs are the model's outputs; None until they were traced
    output_layers: tuple[str, ...] | None = None

    def record_cut(self, tensor: str, dim: int, index: Tensor) -> None:
        """Compose: `index` holds the positions, among those left, that stay along `dim` of `tensor`."""
        index = index.cpu()
        before = self.kept.get((tensor, dim), torch.arange(self.dense[tensor][dim]))
        self.kept[tensor, dim] = before[index]


def has_lineage(model: nn.Module) -> bool:
    """Whether anything was recorded of this model yet."""
    return _ATTRIBUTE in model.__dict__


def set_lineage(model: nn.Module, lineage: Lineage) -> None:
    """Give the model a record, for instance that of the model it is a copy of."""
    model.__dict__[_ATTRIBUTE] = lineage


def lineage_of(model: nn.Module) -> Lineage:
    """The model's record; a model without one is taken as dense as it stands.

    Until the first cut a user may still swap layers, as one does for new classes: the dense network is then the
    new one, and it is no longer the architecture it was built as.
    """
    found: Lineage | None = model.__dict__.get(_ATTRIBUTE)
    if found is None:
        found = Lineage(dense=_shapes(model))
        set_lineage(model, found)
    elif not found.kept:
        shapes = _shapes(model)
        if shapes != found.dense:
            found.dense, found.name, found.options, found.output_layers = shapes, None, {}, None
    return found


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        name: tuple(tensor.shape) for name, tensor in tensors if not name.rpartition(".")[2].startswith("mask_of_")
    }
