"""Copies of a network on the meta device: tensors without values, so that tracing takes no memory."""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.copies import replace_tensors, twin_of
from secateur.framework.network.layers import MADE_UP, named_tensors

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

#: parts of names of operations that differ between devices (attention)
_BY_DEVICE = ("softmax", "bmm", "dot_product")
#: operations whose result has the shape of the input, for which the meta kernels of torch take 1 to 2 ms
_ALIKE = frozenset(
    ["relu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "elu", "leaky_relu", "tanh"]
)


def of_shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation, with shortcuts for tensors on the meta device."""
    given = args[0] if args else None
    if isinstance(given, Tensor) and given.is_meta and not kwargs:
        name = func.overloadpacket.__name__
        if any(part in name for part in _BY_DEVICE):
            raise NotImplementedError(f"{name} on the meta device")
        if name in _ALIKE and given.is_floating_point():
            return torch.empty_like(given)
        if name.endswith("_") and name[:-1] in _ALIKE:
            return given
        if name == "native_batch_norm":
            saved = given.new_empty(given.shape[1] if args[5] else 0)
            return torch.empty_like(given), saved, torch.empty_like(saved)
    return func(*args, **kwargs)


def meta_copy(model: nn.Module) -> nn.Module | None:
    """Return a copy of the network on the meta device, or None if its forward pass may depend on values.

    Third-party modules with tensors may depend on values, and so may the user's hooks.
    """
    for module in model.modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        if any(tensor is not None for tensor in tensors) and not isinstance(module, MADE_UP):
            return None
        if any(getattr(module, name) for name in _HOOKS):
            return None
    shadow = twin_of(model)
    replace_tensors(shadow, {id(tensor): _empty(tensor) for tensor in named_tensors(shadow).values()})
    return shadow


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
