"""Available memory, and an error for requests that exceed it."""

import contextlib
import os
from pathlib import Path

from secateur.utils.errors import UsageError

CGROUP = Path("/sys/fs/cgroup/memory.max")


def memory_bytes() -> int | None:
    """Return the memory available to this process, limited by machine and container; None if unknown."""
    known = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has it
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        known.append(int(CGROUP.read_text(encoding="ascii")))
    return min(known, default=None)


def check_memory(wanted: int, what: str) -> None:
    """Raise UsageError, beginning with `what`, if more bytes are requested than available."""
    there = memory_bytes()
    if there is not None and wanted > there:
        raise UsageError(f"{what} needs {wanted / 2**30:,.1f} GiB of memory, {there / 2**30:,.1f} are available")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a failed allocation of memory."""
    if isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        return "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError)
