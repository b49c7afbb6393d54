"""Modules that are independent of pruning: data sets, loaders, augmentation, layers, files, errors."""

import importlib
import sys

if __name__ == "utils":  # a script in the root of a clone that imports by the name of the folder: no second copies
    __path__ = []
    for _name in ("errors", "vision"):
        globals()[_name] = sys.modules[f"utils.{_name}"] = importlib.import_module(f"secateur.utils.{_name}")
