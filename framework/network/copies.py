"""Copies of a network that share its tensors, for trials that replace some of the tensors."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: types of immutable values
ATOMIC = frozenset(
    [type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type, torch.Size]
)


def twin_of(model: nn.Module) -> nn.Module:
    """Return a copy of the modules and their attributes that shares the model's parameters and buffers.

    The result is that of `copy.deepcopy` with the tensors in its memo, in a fifth of the time, since a module has
    a dozen dicts, most of them empty. If a module class defines how it is copied, `copy.deepcopy` is used.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(model)}
    modules = list(model.modules())
    if not all(map(_is_plain, {type(module) for module in modules})):
        twin: nn.Module = copy.deepcopy(model, memo)
        return twin
    for module in modules:
        memo[id(module)] = type(module).__new__(type(module))
    for module in modules:
        attributes = vars(memo[id(module)])
        for name, value in vars(module).items():
            if type(value) in ATOMIC:
                attributes[name] = value
            elif name != "_compiled_call_impl":  # compiled for the original
                attributes[name] = _copied(value, memo)
    copied: nn.Module = memo[id(model)]
    return copied


def _is_plain(kind: Any) -> bool:
    if any(hasattr(kind, name) for name in ("__deepcopy__", "__slots__", "__getnewargs__", "__getnewargs_ex__")):
        return False
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return False
    # torch's own layers restore attributes that files of old versions lack, which a live module has
    restored = kind.__setstate__.__module__.startswith("torch.nn.")
    return restored and kind.__getstate__ in (object.__getstate__, getattr(nn.Module, "__getstate__", None))  # type: ignore[attr-defined]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in ATOMIC:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in (dict, OrderedDict, set):
        made: Any = kind()
        memo[id(value)] = made  # one dict may have several references
        if not value:
            return made
        if kind is set:
            made.update(_copied(entry, memo) for entry in value)
        else:
            made.update((key, _copied(entry, memo)) for key, entry in value.items())
        return made
    if isinstance(value, Tensor) and not value.is_leaf:
        return value  # an activation stored by a forward pass: it cannot be deep-copied
    if kind is list:
        made = []
        memo[id(value)] = made  # before its entries, one of which may refer to it
        made += [_copied(entry, memo) for entry in value]
        return made
    if kind is tuple and all(type(entry) in ATOMIC for entry in value):
        return value
    return copy.deepcopy(value, memo)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for holder in (module._parameters, module._buffers):
            yield from (value for value in holder.values() if value is not None)
        yield from (value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf)
