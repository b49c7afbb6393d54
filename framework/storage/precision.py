"""Conversion of the tensors of a file to the dtypes of a network, refused if values are out of range."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from secateur.utils.errors import UsageError
from secateur.utils.tensors import dtype_name

#: Dtypes that are converted to each other. Narrower formats (float8, float4) need scales that a plain tensor does
#: not have, and integers and complex numbers are not weights of a real network.
CONVERTIBLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fits(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether `converted` can convert tensors of dtype `given` to `wanted`."""
    return given == wanted or given in CONVERTIBLE and wanted in CONVERTIBLE


def converted(
    values: Mapping[str, Tensor], wanted: Mapping[str, torch.dtype], path: str | Path
) -> dict[str, Tensor]:
    """Convert the tensors to the dtypes of `wanted`, for which `fits` must hold.

    Values that are not representable are rounded to the nearest, with a warning. Raises UsageError, naming the
    tensor, if a finite value exceeds the range of the new dtype.
    """
    done: dict[tuple[int, torch.dtype], Tensor] = {}  # shared tensors are converted once
    rounded = []
    for name, value in values.items():
        key = id(value), wanted[name]
        if key in done:
            continue
        done[key] = result = value.to(wanted[name])
        if value.dtype == result.dtype:
            continue
        change = f"{dtype_name(value.dtype)} to {dtype_name(result.dtype)}"
        if bool((result.isinf() & ~value.isinf()).any()):
            raise UsageError(f"{path}: '{name}' has values beyond the range of {dtype_name(result.dtype)}, "
                             f"and cannot be converted from {change}")  # fmt: skip
        back = result.to(value.dtype)
        if not bool(((back == value) | value.isnan()).all()):
            rounded.append(f"'{name}' from {change}")
    if rounded:
        others = f" and {len(rounded) - 1} more" if len(rounded) > 1 else ""
        warnings.warn(f"{path}: values were rounded, {rounded[0]}{others}", stacklevel=4)
    return {name: done[id(value), wanted[name]] for name, value in values.items()}


def check_finite(values: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise UsageError, naming the tensor, if a tensor contains NaN or infinity."""
    for name, value in values.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            kind = "NaN" if bool(value.isnan().any()) else "infinity"
            raise UsageError(f"{path}: '{name}' contains {kind}, only finite values are allowed")


def dtype_named(name: str) -> torch.dtype | None:
    """Return the floating-point dtype of a name such as "float16"; None if there is none."""
    dtype = getattr(torch, name, None) if name.isidentifier() else None
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else None
