"""A network without values, for tracing: its tensors have shapes alone, so that a pass takes no memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.copies import twin_of
from secateur.framework.network.layers import MADE_UP

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

#: another device computes attention by other operations
_BY_DEVICE = ("softmax", "bmm", "dot_product")
#: results are like what goes in, or are it: torch's own formulas for shapes take a millisecond or two for these
_ALIKE = frozenset(
    ["relu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "elu", "leaky_relu", "tanh"]
)


def of_shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation returns, for tensors that may be without values."""
    given = args[0] if args else None
    if isinstance(given, Tensor) and given.is_meta and not kwargs:
        name = func.overloadpacket.__name__
        if any(part in name for part in _BY_DEVICE):
            raise NotImplementedError(f"{name} of shapes alone")
        if name in _ALIKE and given.is_floating_point():
            return torch.empty_like(given)
        if name.endswith("_") and name[:-1] in _ALIKE:
            return given
        if name == "native_batch_norm":
            saved = given.new_empty(given.shape[1] if args[5] else 0)
            return torch.empty_like(given), saved, torch.empty_like(saved)
    return func(*args, **kwargs)


def meta_copy(model: nn.Module) -> nn.Module | None:
    """The network on the meta device; None where values may matter: only layers that are known are sure to ask for
    none. Hooks of the user's may look at values too."""
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        if any(tensor is not None for tensor in own) and not isinstance(module, MADE_UP):
            return None
        if any(getattr(module, name) for name in _HOOKS):
            return None
    shadow = twin_of(model)
    made: dict[int, Tensor] = {}  # tied ones stay tied
    for module in shadow.modules():
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is not None:
                    holder[name] = made.setdefault(id(tensor), _empty(tensor))  # type: ignore[assignment]
    return shadow


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
