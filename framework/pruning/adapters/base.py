"""Adapters: what makes the attributes of a module (`out_channels`, `num_heads`, ...) follow a cut.

A module whose code needs more than the sizes of its tensors gets one:

    from secateur import adapter

    @adapter(MyAttention)
    def follow(module, kept):
        rows = kept("qkv.weight", 0)          # original rows still there, or None: nothing was cut
        module.num_heads = module.qkv.out_features // (3 * module.head_dim)

Adapters run from the outermost module to the innermost after each cut and each load, and see the module with its
new tensors; they may also give the module another class, whose `forward` reads the sizes off the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.framework.network.layers import named_modules, tensor_name
from secateur.framework.network.lineage import Lineage, lineage_of
from secateur.utils.errors import UsageError


@dataclass(frozen=True)
class Kept:
    """Which of the dense network's positions a module's tensors still have."""

    lineage: Lineage
    module: str

    def __call__(self, tensor: str, dim: int) -> Tensor | None:
        """Original indices along `dim` of the module's tensor (a dotted name within it); None if none was cut."""
        return self.lineage.kept.get((self.name(tensor), dim))

    def name(self, tensor: str) -> str:
        """The tensor's name within the whole network."""
        return tensor_name(self.module, tensor)


Follow = Callable[[Any, Kept], None]
#: number of heads, and channels of one, of an attention module as it stands
Heads = Callable[[Any], tuple[int, int]]
_ADAPTERS: dict[str | type[nn.Module], Follow] = {}
_HEADS: dict[str | type[nn.Module], Heads] = {}


def adapter(*types: type[nn.Module] | str, heads: Heads | None = None) -> Callable[[Follow], Follow]:
    """Register a function that sets what a cut has changed in modules of these types and their subclasses.

    A type may be given by its dotted name, so that its package need not be imported. `heads` tells the number of
    heads and the channels of one: with it the module counts as attention whose scale stays what it was, and
    `attention="heads"` can cut whole heads. The nearest type in the method resolution order is taken; the last
    registration counts.
    """

    def register(function: Follow) -> Follow:
        for kind in types:
            if not (isinstance(kind, str) or isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise UsageError(f"adapter takes types of modules or their dotted names, got {kind!r}")
            _ADAPTERS[kind] = function
            if heads is not None:
                _HEADS[kind] = heads
        return function

    return register


def heads_of(module: nn.Module) -> tuple[int, int] | None:
    """Number of heads and channels of one, for an attention module with an adapter."""
    found = _find(_HEADS, module)
    return None if found is None else found(module)


def follow_shapes(model: nn.Module) -> None:
    """Set every such attribute of the model from the tensors it has now."""
    lineage = lineage_of(model)
    known: dict[type[nn.Module], Follow | None] = {}
    for name, module in named_modules(model).items():
        kind = type(module)
        if kind not in known:
            known[kind] = _find(_ADAPTERS, module)
        follow = known[kind]
        if follow is not None:
            follow(module, Kept(lineage, name))


def _find(table: Any, module: nn.Module) -> Any:
    for kind in type(module).__mro__:
        for key in (kind, f"{kind.__module__}.{kind.__qualname__}"):
            if key in table:
                return table[key]
    return None
