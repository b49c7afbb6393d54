"""Tensors and modes for tracing and scoring."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from secateur.utils.errors import UsageError
from secateur.utils.tensors import unusual_kind


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
