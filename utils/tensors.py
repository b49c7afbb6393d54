"""Dtypes and kinds of tensors, and their names for messages."""

import torch
from torch import Tensor


def wide(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that does not support it."""
    return torch.float32 if device.type == "mps" else torch.float64


def dtype_name(dtype: torch.dtype) -> str:
    """Return a name such as "float32"."""
    return str(dtype).removeprefix("torch.")


def unusual_kind(tensor: Tensor) -> str:
    """Return "nested", "meta", "quantized" or a layout such as "sparse_coo"; "" for a dense tensor with values."""
    kinds = {"nested": tensor.is_nested, "meta": tensor.is_meta, "quantized": tensor.is_quantized}
    layout = "" if tensor.layout is torch.strided else str(tensor.layout).removeprefix("torch.")
    return next((kind for kind, applies in kinds.items() if applies), layout)


def described(value: object) -> str:
    """Return dtype and shape of a dense tensor, the kind of another tensor, or the type of another object."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = unusual_kind(value)
    return f"a {kind} tensor" if kind else f"{dtype_name(value.dtype)} {tuple(value.shape)}"
