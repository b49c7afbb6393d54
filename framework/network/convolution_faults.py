"""Convolutions that PyTorch computes wrongly or with out-of-bounds writes on the CPU, and a replacement for them.

`FAULTS` is the table. docs/known_upstream_faults.md describes how it was found, in which versions and with which
instruction sets; `python -m benchmarks.convolutions` repeats the search. The checks depend on the structure of the
network only, not on the processor, since the kernel that it selects is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from secateur.utils.subsampled import SubsampledConv2d, subsampled

#: number of layers named in a message
SHOWN = 3


@dataclass(frozen=True)
class Fault:
    """2-D convolutions on the CPU, in channels_last, with a faulty gradient of the weight."""

    kernel: tuple[int, int]
    #: minimum of the largest stride
    stride: int
    #: input channels of each conv group
    inputs: range

    def hits(self, weight: Tensor, stride: Sequence[int]) -> bool:
        """Whether a convolution with this weight and stride is faulty."""
        return (
            weight.dim() == 4
            and weight.device.type == "cpu"
            and tuple(weight.shape[2:]) == self.kernel
            and max(stride) >= self.stride
            and weight.shape[1] in self.inputs
        )


#: out-of-bounds writes: torch 2.13.0 with oneDNN 3.12.0 on AVX2 (on AVX-512 with ONEDNN_MAX_CPU_ISA=AVX2),
#: found by a run that crashed and confirmed by benchmarks/convolutions.py
FAULTS = (Fault(kernel=(1, 1), stride=2, inputs=range(2, 8)),)


def is_faulty(weight: Tensor, stride: Sequence[int]) -> bool:
    """Whether a 2-D convolution with this weight and stride is in the table."""
    return any(fault.hits(weight, stride) for fault in FAULTS)


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
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    names = ", ".join(f"'{name}'" for name in layers[:SHOWN]) + more
    return f"PyTorch may corrupt memory when it trains {names} in channels_last on the CPU"


def in_channels_last(tensors: Iterable[Tensor]) -> bool:
    """Whether PyTorch regards a tensor as channels_last; the strides of 1x1 kernels may fit both formats."""
    return any(x.dim() == 4 and x.stride(1) == 1 and x.stride(3) == x.shape[1] > 1 for x in tensors)


class _Subsampling(TorchFunctionMode):
    """Computes the convolutions of the table by subsampling, in every module and function."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d:
            return _convolved(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


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
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def safe_convolutions(model: nn.Module) -> AbstractContextManager[Any]:
    """Make gradients of the model correct in any memory format."""
    return _Subsampling() if faulty_layers(model) else nullcontext()
