"""What wraps an optimizer."""

from __future__ import annotations

from typing import Any

import torch

from secateur.utils.errors import UsageError


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a wrapper that keeps it as `.optimizer` (accelerate's is an Optimizer itself)."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"{type(optimizer).__name__} is no torch optimizer")
    return optimizer
