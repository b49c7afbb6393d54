"""Settings of torch and hooks of all modules that scoring must not change: read before, restored afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules import module as global_hooks
from torch.utils import _device

_AUTOCAST = ("cpu", "cuda")


def _autocast() -> tuple[Any, ...]:
    enabled = tuple(torch.is_autocast_enabled(device) for device in _AUTOCAST)
    dtypes = tuple(torch.get_autocast_dtype(device) for device in _AUTOCAST)
    return enabled, dtypes, torch.is_autocast_cache_enabled()


def _set_autocast(value: tuple[Any, ...]) -> None:
    for device, enabled, dtype in zip(_AUTOCAST, value[0], value[1], strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.set_autocast_cache_enabled(value[2])


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _cudnn() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return bool(cudnn.enabled), bool(cudnn.benchmark), bool(cudnn.deterministic)


def _set_cudnn(value: tuple[bool, bool, bool]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = value


def _global_hooks() -> dict[str, Any]:
    tables = {name: value for name, value in vars(global_hooks).items() if name.startswith("_global_")}
    return {name: dict(value) if isinstance(value, dict) else value for name, value in tables.items()}


def _set_global_hooks(value: dict[str, Any]) -> None:
    for name, before in value.items():
        table = getattr(global_hooks, name)
        if isinstance(table, dict):
            table.clear()
            table.update(before)
        else:
            setattr(global_hooks, name, before)


#: what is set -> (how it is read, how it is set)
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (lambda: _device.CURRENT_DEVICE, torch.set_default_device),
    "grad mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "autocast": (_autocast, _set_autocast),
    "deterministic algorithms": (_deterministic, _set_deterministic),
    "the flags of cuDNN": (_cudnn, _set_cudnn),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "global module hooks": (_global_hooks, _set_global_hooks),
}


class ProcessState:
    """The settings of the process as they are now."""

    def __init__(self) -> None:
        self._before = {name: read() for name, (read, _) in SETTINGS.items()}

    def restore(self) -> list[str]:
        """Set back what has changed since, and return the names of it."""
        changed = [name for name, (read, _) in SETTINGS.items() if read() != self._before[name]]
        for name in changed:
            SETTINGS[name][1](self._before[name])
        return changed
