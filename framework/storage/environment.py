"""Description of the environment of a run: versions, machine, device, commit."""

import contextlib
import importlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "accelerate", "click", "foolbox", "matplotlib", "numpy", "pillow", "plotly", "pluggy", "PyYAML", "ray",
    "rich", "safetensors", "scipy", "tensorboard", "torch", "torchvision",
)  # fmt: skip


def describe_environment(device: str, root: Path) -> dict[str, Any]:
    """Return a JSON-serialisable description of this process; `root` is the source tree to read the commit of."""
    torch = sys.modules.get("torch")  # None if this process has not imported it
    cpu = _cpu_model()
    device_name = cpu if device == "cpu" else device
    if device.startswith("cuda") and torch is not None and torch.cuda.is_available():
        device_name = torch.cuda.get_device_name(device)
    return {
        # not that of the metadata: another version may be installed
        "secateur": importlib.import_module("secateur").__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": cpu,
        # those that this process may use
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads() if torch is not None else None,
        "device": device,
        "device_name": device_name,
        "git": git_state(root),
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """Return the commit and whether files differ from it; None if `root` is not under version control.

    A copy of the tree inside another repository (the codebase of a run folder) is not tracked by git.
    """
    if _git(root, "ls-files", "--error-unmatch", "main.py") is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(_git(root, "status", "--porcelain", "--", "."))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):  # git is not installed or fails
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):  # not Linux
        name = re.search(r"^model name\s*:(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if name is not None:
            return name[1].strip()
    return platform.processor() or platform.machine()
