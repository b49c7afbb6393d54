"""Batch norms with a gate on each channel: y = gate * (x_hat + bias) + rest.

The gate starts as the norm's scale and the scale itself becomes 1, so that a network computes the same with gates
and without. You, Yan, Ye, Ma and Wang, 2019, arXiv:1909.08174.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import same_network

#: largest |shift / scale| that a gate takes over
CLAMP = 10.0


class _Gated:
    """A batch norm whose scale is one, with the parameter `gate` `(channels,)` and the constant `rest`."""

    gate: nn.Parameter
    rest: Tensor

    def forward(self: Any, x: Tensor) -> Tensor:
        """Of the shape of x; a norm that has lost all its channels passes x on, which has none either."""
        if not len(self.gate):
            return x
        shape = (1, -1) + (1,) * (x.dim() - 2)
        normed = super().forward(x)  # type: ignore[misc]
        found: Tensor = normed * self.gate.view(shape) + self.rest.view(shape)
        return found


class GatedBatchNorm1d(_Gated, nn.BatchNorm1d):
    """A gated `nn.BatchNorm1d`."""


class GatedBatchNorm2d(_Gated, nn.BatchNorm2d):
    """A gated `nn.BatchNorm2d`."""


class GatedBatchNorm3d(_Gated, nn.BatchNorm3d):
    """A gated `nn.BatchNorm3d`."""


GATED: tuple[type[nn.Module], ...] = (GatedBatchNorm1d, GatedBatchNorm2d, GatedBatchNorm3d)


def gated_norms(model: nn.Module) -> dict[str, Any]:
    """The gated norms of a network by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GATED)}


@torch.no_grad()
def add_gates(model: nn.Module, clamp: float = CLAMP) -> int:
    """Gate every batch norm that has a scale, in place; returns how many. The network computes the same.

    gate = scale, scale = 1 (no longer trained), bias = shift / scale clamped to +-`clamp`; what the clamp cuts off
    lies in `rest`, which is not trained either.
    """
    kinds = {kind.__mro__[2]: kind for kind in GATED}
    count = 0
    with same_network(model):
        for module in list(model.modules()):
            if type(module) in kinds and module.weight is not None:
                _add_gate(module, kinds[type(module)], clamp)
                count += 1
    return count


def _add_gate(norm: Any, kind: type[nn.Module], clamp: float) -> None:
    scale, shift = norm.weight.detach().clone(), norm.bias.detach().clone()
    ratio = torch.where(scale == 0, 0, shift / scale)
    bounded = ratio.clamp(-clamp, clamp)
    whole = (bounded == ratio) & (scale != 0)
    norm.__class__ = kind
    norm.gate = nn.Parameter(scale)
    norm.register_buffer("rest", torch.where(whole, 0, shift - scale * bounded))
    norm.bias.copy_(bounded)
    norm.weight.fill_(1)
    norm.weight.requires_grad_(False)


@torch.no_grad()
def fold_gates(model: nn.Module) -> int:
    """Undo `add_gates`, in place: plain batch norms with scale = gate and shift = gate * bias + rest."""
    norms = gated_norms(model)
    with same_network(model):
        for norm in norms.values():
            norm.bias.copy_(norm.gate * norm.bias + norm.rest)
            norm.weight.mul_(norm.gate).requires_grad_(norm.gate.requires_grad)
            del norm.gate, norm.rest
            norm.__class__ = type(norm).__mro__[2]
    return len(norms)
