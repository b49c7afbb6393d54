"""Layers without input or output channels, as in a removed block, which the kernels of torch do not support."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateur.utils.subsampled import SubsampledConv2d


class _EmptyConvolution:
    """Convolution without inputs, whose outputs are its bias, or without outputs."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Return the biases at the output positions of the original convolution."""
        places = [
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, (before, after), kernel, stride, dilation in zip(
                x.shape[2:], self._padded(), self.kernel_size, self.stride, self.dilation, strict=True
            )
        ]
        # zeros computed from the weight, so that the outputs depend on it in a trace
        value = self.weight.sum(dim=tuple(range(1, self.weight.dim())))
        if self.bias is not None:
            value = value + self.bias
        out: Tensor = value.reshape(1, -1, *[1] * len(places)).expand(len(x), -1, *places)
        return out

    def _padded(self: Any) -> list[tuple[int, int]]:
        """Return the padding before and after each spatial axis; torch stores pairs with the last axis first."""
        pairs = self._reversed_padding_repeated_twice
        return [(pairs[at], pairs[at + 1]) for at in range(len(pairs) - 2, -1, -2)]


class EmptyConv1d(_EmptyConvolution, nn.Conv1d):
    """A `nn.Conv1d` without inputs or outputs."""


class EmptyConv2d(_EmptyConvolution, nn.Conv2d):
    """A `nn.Conv2d` without inputs or outputs."""


class EmptyConv3d(_EmptyConvolution, nn.Conv3d):
    """A `nn.Conv3d` without inputs or outputs."""


class _EmptyNorm:
    def forward(self: Any, x: Tensor) -> Tensor:
        """Return the input, which has no channels."""
        return x


class EmptyBatchNorm1d(_EmptyNorm, nn.BatchNorm1d):
    """A `nn.BatchNorm1d` without channels."""


class EmptyBatchNorm2d(_EmptyNorm, nn.BatchNorm2d):
    """A `nn.BatchNorm2d` without channels."""


class EmptyBatchNorm3d(_EmptyNorm, nn.BatchNorm3d):
    """A `nn.BatchNorm3d` without channels."""


class EmptyGroupNorm(_EmptyNorm, nn.GroupNorm):
    """A `nn.GroupNorm` without channels."""


EMPTY: tuple[type[nn.Module], ...] = (
    EmptyConv1d, EmptyConv2d, EmptyConv3d, EmptyBatchNorm1d, EmptyBatchNorm2d, EmptyBatchNorm3d, EmptyGroupNorm
)  # fmt: skip


def without_channels(module: nn.Module) -> None:
    """Assign the empty class to a torch layer without input or output channels; other classes are unchanged."""
    for kind in EMPTY:
        plain = kind.__mro__[2]
        if type(module) is plain or plain is nn.Conv2d and type(module) is SubsampledConv2d:
            module.__class__ = kind
