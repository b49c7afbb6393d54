"""Tensors in the nested outputs of a network, and temporary forward hooks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Hook = tuple[nn.Module, Callable[..., Tensor | None]]


def output_tensors(out: Any, depth: int = 6) -> list[Tensor]:
    """Return all tensors in sequences, mappings, sets, dataclasses and other objects, in a fixed order.

    Objects that are nested deeper than `depth` are not searched.
    """
    if isinstance(out, Tensor):
        return [out]
    if depth == 0 or isinstance(out, (str, bytes, int, float, complex, type(None))):
        return []
    if isinstance(out, Mapping):
        parts = list(out.values())
    elif isinstance(out, (list, tuple, set, frozenset)):
        parts = list(out)
    else:
        slots = [name for kind in type(out).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [*getattr(out, "__dict__", {}).values(), *(getattr(out, name, None) for name in slots)]
    return [tensor for part in parts for tensor in output_tensors(part, depth - 1)]


@contextmanager
def hooked(hooks: Iterable[Hook], before: Iterable[Hook] = ()) -> Iterator[None]:
    """Register forward hooks, and those to be called before the forward pass, and remove them on exit."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in before]
    handles += [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
