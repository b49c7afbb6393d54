"""Registry of adapters: functions that update the attributes of a module (`num_heads`, ...) after a cut.

A module whose code depends on more than the shapes of its tensors needs one:

    from secateur import adapter

    @adapter(MyAttention)
    def follow(module, kept):
        rows = kept("qkv.weight", 0)          # original indices of the kept rows; None if none was cut
        module.num_heads = module.qkv.out_features // (3 * module.head_dim)

Adapters run from the outermost module to the innermost after each cut and each load, when the module has its new
tensors. They may also assign another class to the module, whose `forward` takes the sizes from the tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.framework.network.layers import tensor_name
from secateur.framework.network.lineage import Lineage, lineage_of
from secateur.utils.errors import UsageError


@dataclass(frozen=True)
class Kept:
    """Query for the original indices that remain in a module's tensors; the second argument of every adapter.

    Attributes:
        lineage: The lineage of the network: shapes of the dense tensors, and kept indices.
        module: The module's name within the network.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import Kept, channel_groups, cut
        >>> from secateur.framework.network.lineage import lineage_of
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> groups = channel_groups(model, torch.randn(1, 4))
        >>> _ = cut(model, {"0": torch.tensor([True, False, True])}, groups)
        >>> kept = Kept(lineage_of(model), "0")
        >>> kept("weight", 0), kept("weight", 1), kept.name("weight")
        (tensor([0, 2]), None, '0.weight')
    """

    lineage: Lineage
    module: str

    def __call__(self, tensor: str, dim: int) -> Tensor | None:
        """Return the original indices that remain along a dimension, ascending.

        Args:
            tensor: Dotted name of a parameter or buffer within the module, such as "qkv.weight".
            dim: The dimension.

        Returns:
            int64 `(kept,)`, or None if nothing was cut along this dimension.
        """
        return self.lineage.kept.get((self.name(tensor), dim))

    def name(self, tensor: str) -> str:
        """Return the name of the module's tensor within the whole network."""
        return tensor_name(self.module, tensor)


#: an adapter: a function of the module and of the query for its kept indices
Follow = Callable[[Any, Kept], None]
#: a function that returns the current number of heads and channels per head of an attention module
Heads = Callable[[Any], tuple[int, int]]
_ADAPTERS: dict[str | type[nn.Module], Follow] = {}
_HEADS: dict[str | type[nn.Module], Heads] = {}


def adapter(*types: type[nn.Module] | str, heads: Heads | None = None) -> Callable[[Follow], Follow]:
    """Register a function that updates the attributes of modules of these types after a cut; a decorator.

    An adapter also runs for subclasses: the first registered type in the method resolution order decides. A later
    registration of a type replaces an earlier one.

    Args:
        *types: Subclasses of `nn.Module`, or their dotted names "package.module.Class", which import nothing.
        heads: A function that returns (number of heads, channels per head) of such a module. The module is then
            attention whose adapter keeps the dense scale, and `channel_groups(..., attention="heads")` can cut its
            whole heads. Default: None, the module has no heads.

    Returns:
        A decorator that registers a function `(module, kept) -> None` and returns it; `kept` is a `Kept`.

    Raises:
        UsageError: If a type is neither a subclass of `nn.Module` nor a string.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import adapter, channel_groups, cut
        >>> class Head(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc, self.out, self.width = nn.Linear(4, 3), nn.Linear(3, 2), 3
        ...     def forward(self, x):
        ...         return self.out(self.fc(x))
        >>> @adapter(Head)
        ... def follow(module, kept):
        ...     rows = kept("fc.weight", 0)
        ...     if rows is not None:
        ...         module.width = len(rows)
        >>> model = Head()
        >>> groups = channel_groups(model, torch.randn(1, 4))
        >>> _ = cut(model, {"fc": torch.tensor([True, False, True])}, groups)
        >>> model.width
        2
    """

    def register(function: Follow) -> Follow:
        for kind in types:
            if not (isinstance(kind, str) or isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise UsageError(f"adapter: types must be subclasses of nn.Module or dotted names, got {kind!r}")
            _ADAPTERS[kind] = function
            if heads is not None:
                _HEADS[kind] = heads
        return function

    return register


def heads_of(module: nn.Module) -> tuple[int, int] | None:
    """Return the number of heads and the channels per head of an attention module; None without an adapter."""
    heads = _find(_HEADS, module)
    return None if heads is None else heads(module)


def by_head(tensor: Tensor, heads: int, size: int) -> Tensor:
    """Return (..., positions, channels) as (..., heads, positions, size)."""
    return tensor.unflatten(-1, (heads, size)).transpose(-3, -2)


def follow_shapes(model: nn.Module) -> None:
    """Run the adapters of all modules of the model."""
    lineage = lineage_of(model)
    for name, module in list(model.named_modules()):
        follow = _find(_ADAPTERS, module)
        if follow is not None:
            follow(module, Kept(lineage, name))


def _find(table: Any, module: nn.Module) -> Any:
    for kind in type(module).__mro__:
        for key in (kind, f"{kind.__module__}.{kind.__qualname__}"):
            if key in table:
                return table[key]
    return None
