"""Process-wide settings of torch and global hooks that scoring must not change: saved and restored."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.modules import module as global_hooks
from torch.optim import optimizer as optimizers
from torch.utils import _device, _python_dispatch

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]


def _together(*settings: Setting) -> Setting:
    """Return a getter and a setter of several settings."""

    def write(values: tuple[Any, ...]) -> None:
        for (_, put), value in zip(settings, values, strict=True):
            put(value)

    return lambda: tuple(read() for read, _ in settings), write


def _attributes(*places: tuple[Any, str]) -> Setting:
    """Return a getter and a setter of attributes, given by owner and name."""
    return _together(*((partial(getattr, *place, None), partial(setattr, *place)) for place in places))


def _autocast(device: str) -> Setting:
    return _together(
        (partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)),
        (partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device)),
    )


def _modes() -> tuple[list[Any], list[Any]]:
    functions = range(torch._C._len_torch_function_stack())
    dispatches = range(torch._C._len_torch_dispatch_stack())
    return (
        [torch._C._get_function_stack_at(index) for index in functions],
        [torch._C._get_dispatch_stack_at(index) for index in dispatches],
    )


def _set_modes(value: tuple[list[Any], list[Any]]) -> None:
    now = _modes()
    for mode in reversed(now[1]):
        _python_dispatch._pop_mode(getattr(mode, "_mode_key", None))
    for _ in now[0]:
        torch._C._pop_torch_function_stack()
    for mode in value[0]:
        torch._C._push_on_torch_function_stack(mode)
    for mode in value[1]:
        _python_dispatch._push_mode(mode)


def _saved_tensors() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _set_saved_tensors(value: Any) -> None:
    while _saved_tensors() not in (value, None):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _global_hooks() -> dict[Any, Any]:
    """Return (module of torch, name of a dict or value) -> its content."""
    return {
        (owner, name): dict(value) if isinstance(value, dict) else value
        for owner in (global_hooks, optimizers)
        for name, value in vars(owner).items()
        if name.startswith("_global_") and not callable(value)
    }


def _set_global_hooks(value: dict[Any, Any]) -> None:
    for (owner, name), before in value.items():
        table = getattr(owner, name)
        if isinstance(table, dict):
            table.clear()
            table.update(before)
        else:
            setattr(owner, name, before)


#: name of a setting -> (getter, setter)
TORCH_SETTINGS: dict[str, Setting] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    # not by torch.set_default_device, which leaves a `with torch.device(...)` that was entered and never left
    "the default device": _attributes(
        (_device, "CURRENT_DEVICE"), (torch._GLOBAL_DEVICE_CONTEXT, "device_context")
    ),
    "active modes of torch": (_modes, _set_modes),
    "grad mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "autocast": _together(
        _autocast("cpu"),
        _autocast("cuda"),
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    ),
    # not by torch.set_deterministic_debug_mode, which leaves the setting of the compiler
    "deterministic algorithms": (
        torch.get_deterministic_debug_mode,
        lambda mode: torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1),
    ),
    "the flags of cuDNN": _attributes(
        *((torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic"))
    ),
    "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "the precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "hooks of saved tensors": (_saved_tensors, _set_saved_tensors),
    "global hooks": (_global_hooks, _set_global_hooks),
}


class ProcessState:
    """Snapshot of the settings of the process."""

    def __init__(self) -> None:
        self._before = {name: read() for name, (read, _) in TORCH_SETTINGS.items()}

    def restore(self) -> list[str]:
        """Restore the settings that have changed since the snapshot, and return their names."""
        changed = [name for name, (read, _) in TORCH_SETTINGS.items() if read() != self._before[name]]
        for name in changed:
            TORCH_SETTINGS[name][1](self._before[name])
        return changed
