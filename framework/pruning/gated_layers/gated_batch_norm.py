"""Batch norms with a gate on each channel: y = gate * (x_hat + bias) + rest.

The initial gate is the norm's scale, and the scale becomes 1, so that the network's outputs do not change. You,
Yan, Ye, Ma and Wang, 2019, arXiv:1909.08174.
"""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import same_network

#: largest |shift / scale| that the gated bias can have
CLAMP = 10.0


class _Gated:
    """A batch norm of scale 1 with the parameter `gate` and the buffer `rest`, both `(channels,)`."""

    gate: nn.Parameter
    rest: Tensor

    def forward(self: Any, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x; x itself if all channels were removed."""
        if not len(self.gate):
            return x
        shape = (1, -1) + (1,) * (x.dim() - 2)
        normed = super().forward(x)  # type: ignore[misc]
        out: Tensor = normed * self.gate.view(shape) + self.rest.view(shape)
        return out


class GatedBatchNorm1d(_Gated, nn.BatchNorm1d):
    """A gated `nn.BatchNorm1d`."""


class GatedBatchNorm2d(_Gated, nn.BatchNorm2d):
    """A gated `nn.BatchNorm2d`."""


class GatedBatchNorm3d(_Gated, nn.BatchNorm3d):
    """A gated `nn.BatchNorm3d`."""


GATED: tuple[type[nn.Module], ...] = (GatedBatchNorm1d, GatedBatchNorm2d, GatedBatchNorm3d)


def gated_norms(model: nn.Module) -> dict[str, Any]:
    """Return the gated norms of a network by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GATED)}


@torch.no_grad()
def add_gates(model: nn.Module, clamp: float = CLAMP) -> int:
    """Add a gate to every batch norm with a scale, in place, and return their number.

    The network's outputs do not change: gate = scale, scale = 1 (not trained), bias = shift / scale clamped to
    +-`clamp`, and rest = shift - scale * bias (not trained).
    """
    kinds = {kind.__mro__[2]: kind for kind in GATED}
    norms: list[Any] = [norm for norm in model.modules() if type(norm) in kinds and norm.weight is not None]
    with same_network(model):
        for norm in norms:
            scale, shift = norm.weight.detach().clone(), norm.bias.detach().clone()
            ratio = torch.where(scale == 0, 0, shift / scale)
            bounded = ratio.clamp(-clamp, clamp)
            whole = (bounded == ratio) & (scale != 0)
            norm.__class__ = kinds[type(norm)]
            norm.gate = nn.Parameter(scale)
            norm.register_buffer("rest", torch.where(whole, 0, shift - scale * bounded))
            norm.bias.copy_(bounded)
            norm.weight.fill_(1)
            norm.weight.requires_grad_(False)
    return len(norms)


@torch.no_grad()
def fold_gates(model: nn.Module) -> int:
    """Undo `add_gates`, in place, and return the number of norms: scale = gate, shift = gate * bias + rest."""
    norms = gated_norms(model)
    with same_network(model):
        for norm in norms.values():
            norm.bias.copy_(norm.gate * norm.bias + norm.rest)
            norm.weight.mul_(norm.gate).requires_grad_(norm.gate.requires_grad)
            del norm.gate, norm.rest
            norm.__class__ = type(norm).__mro__[2]
    return len(norms)
