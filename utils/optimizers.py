"""Wrappers of optimizers."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def scaled_rates(optimizer: Any, factor: float) -> Iterator[None]:
    """Multiply the learning rates of all parameter groups by a factor inside the block."""
    groups = unwrapped(optimizer).param_groups
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
