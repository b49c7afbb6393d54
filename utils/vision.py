"""The one place that imports torchvision."""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

import torch

# Operators that torchvision registers fake kernels for while it is being imported. Where its compiled library
# does not load (a CPU build of torch beside a CUDA build of torchvision) they do not exist and the import
# dies. Nothing here calls them: a schema without a kernel is enough.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# An operator lives only as long as the Library object that defined it.
_libraries: list[torch.library.Library] = []


def _define_missing_operators() -> None:
    """Define every schema of `_SCHEMAS` that does not exist yet."""
    # FRAGMENT, unlike DEF, tolerates others that extend the same namespace
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)


def _forget_half_imported() -> None:
    """Remove the submodules that a failed import of torchvision leaves in `sys.modules`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


@functools.cache
def torchvision() -> ModuleType:
    """Return the torchvision package, imported on the first call.

    Where the compiled operators load nothing is defined: a second definition would collide with theirs, and
    whether they load is known only after the import has been tried.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    _forget_half_imported()
    _define_missing_operators()
    return importlib.import_module("torchvision")
