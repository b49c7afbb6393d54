"""Import of torchvision; no other module imports it directly."""

import functools
import importlib
import sys
from types import ModuleType

import torch

# Operators that torchvision registers fake kernels for during its import. If its compiled library does not load
# (a CPU build of torch with a CUDA build of torchvision), they do not exist and the import fails. Secateur does
# not call them, so a schema without a kernel is sufficient.
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


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
    for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # half imported
    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", _SCHEMA)
    return importlib.import_module("torchvision")
