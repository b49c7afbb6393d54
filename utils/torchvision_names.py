"""Names of torchvision's classification networks, read from its source without importing it or torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown


@functools.cache
def classification_networks() -> tuple[str, ...]:
    """Return the sorted names of the builders registered in the files of torchvision's models folder.

    The folders for detection, segmentation, video and quantised networks are not searched.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("torchvision is not installed: it is needed for --model TorchvisionModel")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return tuple(sorted(name for file in folder.glob("*.py") for name in _registered(file)))


def check_arch(arch: object) -> None:
    """Raise UsageError with the nearest match unless `arch` is one of torchvision's classification networks."""
    names = classification_networks()
    if arch not in names:
        raise UsageError(unknown("--arch", str(arch), names))


def _registered(file: Path) -> list[str]:
    """Return the names of the functions of a file that are decorated with `register_model`."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _is_registered(node)]


def _is_registered(node: ast.FunctionDef) -> bool:
    calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(call.func, ast.Name) and call.func.id == "register_model" for call in calls)
