"""Layers with a size attribute and no tensor of that size: norms without scale and shift, Unflatten.

After a cut they are assigned a class that takes the size from its input and updates the attribute.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, nn


class FreeLayerNorm(nn.LayerNorm):
    """A `nn.LayerNorm` without scale and shift, over as many of the last axes as before, of any size."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.LayerNorm.forward`."""
        _set(self, normalized_shape=tuple(input.shape[-len(self.normalized_shape) :]))
        return super().forward(input)


class FreeRMSNorm(nn.RMSNorm):
    """A `nn.RMSNorm` without scale, over as many of the last axes as before, of any size."""

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.RMSNorm.forward`."""
        _set(self, normalized_shape=tuple(x.shape[-len(self.normalized_shape) :]))
        return super().forward(x)


class FreeGroupNorm(nn.GroupNorm):
    """A `nn.GroupNorm` without scale and shift: a group for each channel, or as many groups as before."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.GroupNorm.forward`."""
        if self.num_groups == self.num_channels:
            _set(self, num_groups=input.shape[1])
        _set(self, num_channels=input.shape[1])
        return super().forward(input)


class _FreeInstanceNorm:
    def forward(self: Any, input: Tensor) -> Tensor:
        """Normalise an input of any number of channels, with or without a batch axis."""
        _set(self, num_features=input.shape[input.dim() - self._get_no_batch_dim()])
        out: Tensor = super().forward(input)  # type: ignore[misc]
        return out


class FreeInstanceNorm1d(_FreeInstanceNorm, nn.InstanceNorm1d):
    """A `nn.InstanceNorm1d` without tensors."""


class FreeInstanceNorm2d(_FreeInstanceNorm, nn.InstanceNorm2d):
    """A `nn.InstanceNorm2d` without tensors."""


class FreeInstanceNorm3d(_FreeInstanceNorm, nn.InstanceNorm3d):
    """A `nn.InstanceNorm3d` without tensors."""


class _FreeBatchNorm:
    def forward(self: Any, input: Tensor) -> Tensor:
        """Normalise an input of any number of channels."""
        _set(self, num_features=input.shape[1])
        out: Tensor = super().forward(input)  # type: ignore[misc]
        return out


class FreeBatchNorm1d(_FreeBatchNorm, nn.BatchNorm1d):
    """A `nn.BatchNorm1d` without tensors."""


class FreeBatchNorm2d(_FreeBatchNorm, nn.BatchNorm2d):
    """A `nn.BatchNorm2d` without tensors."""


class FreeBatchNorm3d(_FreeBatchNorm, nn.BatchNorm3d):
    """A `nn.BatchNorm3d` without tensors."""


class FreeUnflatten(nn.Unflatten):
    """A `nn.Unflatten` whose first size, the channels, is the input's size divided by the other sizes."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Unflatten.forward`."""
        assert isinstance(self.dim, int)
        sizes = [int(size) for size in self.unflattened_size]
        inner, whole = prod(sizes[1:]), input.shape[self.dim]
        if min(sizes) > 0 and whole % inner == 0:  # else torch raises an error
            _set(self, unflattened_size=(whole // inner, *sizes[1:]))
        return super().forward(input)


FREE: tuple[tuple[type[nn.Module], type[nn.Module]], ...] = (
    (nn.LayerNorm, FreeLayerNorm),
    (nn.RMSNorm, FreeRMSNorm),
    (nn.GroupNorm, FreeGroupNorm),
    (nn.InstanceNorm1d, FreeInstanceNorm1d),
    (nn.InstanceNorm2d, FreeInstanceNorm2d),
    (nn.InstanceNorm3d, FreeInstanceNorm3d),
    (nn.BatchNorm1d, FreeBatchNorm1d),
    (nn.BatchNorm2d, FreeBatchNorm2d),
    (nn.BatchNorm3d, FreeBatchNorm3d),
    (nn.Unflatten, FreeUnflatten),
)


def _set(module: nn.Module, **values: Any) -> None:
    """Assign attributes that differ: `torch.export` fails on assignments within forward."""
    for name, value in values.items():
        if getattr(module, name) != value:
            setattr(module, name, value)


def of_any_size(module: nn.Module) -> None:
    """Assign the class that takes the size from its input to a torch layer; other classes are unchanged."""
    for kind, free in FREE:
        if type(module) is kind:
            module.__class__ = free
