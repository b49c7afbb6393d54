"""Checks of tensors and modes for tracing, scoring and in-place changes of a network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.utils.errors import UsageError


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Disable autocast and inference mode, so that weights are traced and scored in their own precision.

    As a decorator it adds a frame between the caller and the function, which counts in the `stacklevel` of a
    warning.
    """
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def ordinary(value: Any) -> Any:
    """Return a detached tensor, cloned if it was created in inference mode, where autograd cannot use it.

    Other objects are returned unchanged.
    """
    if not isinstance(value, Tensor):
        return value
    if value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value.detach() if value.requires_grad else value


def check_dense(where: str, tensor: Tensor) -> None:
    """Raise UsageError, beginning with `where`, for a tensor that is not dense or has no values."""
    kind = unusual_kind(tensor)
    if kind:
        raise UsageError(f"{where} must be a dense tensor with values, got a {kind} one")


def unusual_kind(tensor: Tensor) -> str:
    """Return "nested", "meta", "quantized" or a layout such as "sparse_coo"; "" for a dense tensor with values."""
    kinds = {"nested": tensor.is_nested, "meta": tensor.is_meta, "quantized": tensor.is_quantized}
    layout = "" if tensor.layout is torch.strided else str(tensor.layout).removeprefix("torch.")
    return next((kind for kind, applies in kinds.items() if applies), layout)


def check_memory(owner: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UsageError for a parameter whose memory overlaps, or whose dtype has no arithmetic.

    An in-place write to overlapping memory changes other entries of the parameter, or another parameter.

    `owner` is the name of the network in the message.
    """
    by_storage: dict[int, dict[int, str]] = {}
    for name, tensor in tensors.items():
        if tensor.is_inference():
            raise UsageError(
                f"{owner}: '{name}' was created in torch.inference_mode, and autograd cannot use it: create "
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
                f"{owner}: several entries of '{name}' share memory (strides {tensor.stride()}): assign a copy, "
                "such as nn.Parameter(tensor.clone())"
            )
        by_storage.setdefault(tensor.untyped_storage()._cdata, {}).setdefault(id(tensor), name)
    for names in by_storage.values():
        shared = list(names.values())
        if len(shared) > 1 and _overlap([tensors[name] for name in shared]):
            raise UsageError(
                f"{owner}: {' and '.join(map(repr, shared[:2]))} share memory without being one parameter: assign "
                "the same nn.Parameter to both, or a copy to one of them"
            )


def _overlap(tensors: list[Tensor]) -> bool:
    """Whether two entries of these tensors, which share a storage, have the same memory address."""
    size = max(tensor.element_size() for tensor in tensors)
    if any(tensor.element_size() != size for tensor in tensors):
        return True  # a view with another dtype
    taken = torch.zeros(tensors[0].untyped_storage().nbytes() // size, dtype=torch.bool)
    positions = torch.arange(len(taken))
    for tensor in tensors:
        # by an index, since torch refuses a write to overlapping entries
        taken[positions.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).reshape(-1)] = True
    return int(taken.sum()) < sum(tensor.numel() for tensor in tensors)
