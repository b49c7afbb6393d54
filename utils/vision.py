"""Import of torchvision; no other module imports it directly."""

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import torch

# Operators that torchvision registers fake kernels for during its import. If its compiled library does not load
# (a CPU build of torch with a CUDA build of torchvision), they do not exist and the import fails. Secateur does
# not call them, so a schema without a kernel is sufficient.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# An operator exists only as long as the Library object that defined it.
_libraries: list[torch.library.Library] = []


def _define_missing_operators() -> None:
    """Define every schema of `_SCHEMAS` that does not exist yet."""
    # FRAGMENT, unlike DEF, allows other libraries to extend the same namespace
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)


def _forget_half_imported() -> None:
    """Remove the submodules of torchvision from `sys.modules` after a failed import."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]


@functools.cache
def torchvision() -> ModuleType:
    """Return the torchvision package, imported on the first call.

    Use this function instead of `import torchvision` in plug-ins: the import also succeeds if the compiled library
    of torchvision does not load, as with a CPU build of torch and a CUDA build of torchvision.

    Returns:
        The module `torchvision`.

    Raises:
        ImportError: If torchvision is not installed.
        RuntimeError: If its import fails for another reason than missing operators.

    Example:
        >>> from secateur import torchvision
        >>> torchvision().models.get_model("resnet18", weights=None).fc.out_features
        1000
    """
    # Operators are defined only after a failed import: a second definition of loaded ones would be an error.
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    _forget_half_imported()
    _define_missing_operators()
    return importlib.import_module("torchvision")


def torchvision_dataset(name: str) -> Any:
    """Return torchvision's data set class of this name."""
    return getattr(torchvision().datasets, name)
