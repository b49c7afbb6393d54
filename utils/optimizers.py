"""Wrappers of optimizers."""

from __future__ import annotations

from typing import Any

import torch

from secateur.utils.errors import UsageError


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside wrappers with an attribute `optimizer`, such as accelerate's."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"{type(optimizer).__name__} is not a torch optimizer")
    return optimizer
