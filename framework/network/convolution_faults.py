"""Convolutions that PyTorch computes wrongly or with out-of-bounds writes on the CPU, and a replacement for them.

docs/known_upstream_faults.md describes how they were found, in which versions and with which instruction sets;
`python -m benchmarks.convolutions` repeats the search. The checks depend on the structure of the network only, not
on the processor, since the kernel that it selects is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from secateur.framework.network.layers import shortened
from secateur.utils.subsampled import SubsampledConv2d, subsampled


def is_faulty(weight: Tensor, stride: Sequence[int]) -> bool:
    """Whether a 2-D convolution on the CPU, in channels_last, has a faulty gradient of the weight.

    The kernel is 1 x 1, the largest stride at least 2, and a conv group has 2 to 7 input channels: out-of-bounds
    writes by torch 2.13.0 with oneDNN 3.12.0 on AVX2 (on AVX-512 with ONEDNN_MAX_CPU_ISA=AVX2), found by a run
    that crashed and confirmed by benchmarks/convolutions.py.
    """
    pointwise = weight.dim() == 4 and weight.shape[2:] == (1, 1)
    return pointwise and weight.device.type == "cpu" and max(stride) >= 2 and 2 <= weight.shape[1] <= 7


def faulty_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that must not be trained in channels_last.

    Subclasses of `nn.Conv2d` are included, `SubsampledConv2d` is not.
    """
    return [
        name or type(model).__name__
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
        and not isinstance(layer, SubsampledConv2d)
        and isinstance(layer.weight, Tensor)
        and not is_lazy(layer.weight)
        and is_faulty(layer.weight, layer.stride)
    ]


def explained(layers: Sequence[str]) -> str:
    """Return a message about these layers."""
    return f"PyTorch may corrupt memory when it trains {shortened(layers)} in channels_last on the CPU"


def in_channels_last(tensors: Iterable[Tensor]) -> bool:
    """Whether PyTorch regards a tensor as channels_last; the strides of 1x1 kernels may fit both formats."""
    return any(x.dim() == 4 and x.stride(1) == 1 and x.stride(3) == x.shape[1] > 1 for x in tensors)


class _Subsampling(TorchFunctionMode):
    """Computes the faulty convolutions by subsampling, in every module and function."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_convolved if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _convolved(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    strides = _pair(stride)
    if not is_faulty(weight, strides):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    rows, columns = (0, 0) if isinstance(padding, str) else _pair(padding)  # "same" has no stride
    if rows or columns:
        input = nn.functional.pad(input, (columns, columns, rows, rows))
    return subsampled(input, weight, bias, strides, groups)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def safe_convolutions(model: nn.Module) -> AbstractContextManager[Any]:
    """Make gradients of the model correct in any memory format."""
    return _Subsampling() if faulty_layers(model) else nullcontext()
