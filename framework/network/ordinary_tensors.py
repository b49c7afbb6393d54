"""Tensors and modes in which a network can be traced, scored and changed in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.utils.errors import UsageError


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Inside, autocast and inference mode are off: weights are traced and scored in their own precision.

    As a decorator it adds a frame between the caller and the function, which `stacklevel` of a warning counts.
    """
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def ordinary(value: Any) -> Any:
    """A tensor without a graph and a gradient, copied if it was made in inference mode, which autograd cannot
    use; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value.detach() if value.requires_grad else value


def check_dense(where: str, tensor: Tensor) -> None:
    """Raise UsageError, beginning with `where`, for a tensor that is not dense or has no values."""
    kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else None
    if kind is None and tensor.is_quantized:
        kind = "quantized"
    if kind is None and tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
    if kind is not None:
        raise UsageError(f"{where} must be a dense tensor with values, got a {kind} one")


def check_memory(owner: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError for a parameter that cannot be written in place without changing another or itself, or
    whose dtype has no arithmetic."""
    by_storage: dict[int, dict[int, str]] = {}
    for name, tensor in tensors.items():
        if tensor.is_inference():
            raise UsageError(
                f"{owner}: '{name}' was made in torch.inference_mode, where autograd cannot use it: make "
                "the network outside, or deep-copy it there"
            )
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.element_size() < 2:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"{owner}: '{name}' is {dtype}, which has no arithmetic: convert the network to float32, float64, "
                "bfloat16 or float16"
            )
        if not isinstance(tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.numel() == 0:
            continue
        if torch._debug_has_internal_overlap(tensor) and _overlap([tensor]):
            raise UsageError(
                f"{owner}: several entries of '{name}' share memory (strides {tensor.stride()}): give it memory "
                "of its own, such as nn.Parameter(tensor.clone())"
            )
        by_storage.setdefault(tensor.untyped_storage()._cdata, {}).setdefault(id(tensor), name)
    for names in by_storage.values():
        shared = list(names.values())
        if len(shared) > 1 and _overlap([tensors[name] for name in shared]):
            raise UsageError(
                f"{owner}: {' and '.join(map(repr, shared[:2]))} share memory without being one parameter: assign "
                "the same nn.Parameter to both, or give each memory of its own"
            )


def _overlap(tensors: list[Tensor]) -> bool:
    """Whether some place in memory belongs to two entries of these tensors, which share a storage."""
    size = max(tensor.element_size() for tensor in tensors)
    if any(tensor.element_size() != size for tensor in tensors):
        return True  # one type seen as another
    starts = [tensor.storage_offset() for tensor in tensors]
    ends = [start + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            for start, tensor in zip(starts, tensors, strict=True)]  # fmt: skip
    first, entries = min(starts), sum(tensor.numel() for tensor in tensors)
    taken = torch.zeros(max(ends) - first, dtype=torch.bool)
    for start, tensor in zip(starts, tensors, strict=True):
        # through an index: a write to overlapping entries is refused
        places = torch.arange(len(taken)).as_strided(tensor.shape, tensor.stride(), start - first)
        taken[places.reshape(-1)] = True
    return int(taken.sum()) < entries
