"""Convolutions that PyTorch computes wrongly or outside of its memory on the CPU, and how they are avoided.

`FAULTS` is the table. docs/known_upstream_faults.md says how it was found, in which versions and with which
instructions; `python -m benchmarks.convolutions` repeats the search. The checks go by the structure of the network
alone, never by the processor: which kernel is chosen there is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from secateur.utils.subsampled import SubsampledConv2d, subsampled

#: names of layers in a message
SHOWN = 3


@dataclass(frozen=True)
class Fault:
    """2-D convolutions on the CPU, in channels_last, of which the gradient of the weight is faulty."""

    kernel: tuple[int, int]
    #: the stride is at least this in one dimension
    stride: int
    #: input channels of each conv group
    inputs: range

    def hits(self, weight: Tensor, stride: Sequence[int]) -> bool:
        """Whether a convolution with this weight is one of them."""
        return (
            weight.dim() == 4
            and weight.device.type == "cpu"
            and tuple(weight.shape[2:]) == self.kernel
            and max(stride) >= self.stride
            and weight.shape[1] in self.inputs
        )


#: writes outside its memory: torch 2.13.0 with oneDNN 3.12.0 on AVX2 (on AVX-512 with ONEDNN_MAX_CPU_ISA=AVX2),
#: found by a run that crashed and confirmed by benchmarks/convolutions.py
FAULTS = (Fault(kernel=(1, 1), stride=2, inputs=range(2, 8)),)


def is_faulty(weight: Tensor, stride: Sequence[int]) -> bool:
    """Whether a 2-D convolution with this weight and stride is in the table."""
    return any(fault.hits(weight, stride) for fault in FAULTS)


def faulty_layers(model: nn.Module) -> list[str]:
    """Names of the layers, subclasses of `nn.Conv2d` included, that must not be trained in channels_last."""
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
    """What is wrong with these layers, for a message."""
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    names = ", ".join(f"'{name}'" for name in layers[:SHOWN]) + more
    return f"PyTorch may corrupt memory when it trains {names} in channels_last on the CPU"


def in_channels_last(tensors: Iterable[Tensor]) -> bool:
    """Whether PyTorch takes one of the tensors for channels_last: 1x1 kernels are contiguous in both formats."""
    return any(one.dim() == 4 and one.stride(1) == 1 and one.stride(3) == one.shape[1] > 1 for one in tensors)


class _Subsampling(TorchFunctionMode):
    """Computes the convolutions of the table by subsampling, whatever module or function calls them."""

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


@contextmanager
def safe_convolutions(model: nn.Module) -> Iterator[None]:
    """Within it the model may be differentiated in any memory format."""
    if not faulty_layers(model):
        yield
        return
    with _Subsampling():
        yield
