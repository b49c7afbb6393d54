"""Backward compatibility for plug-ins that import from `framework`, `utils`, `trainers`, ... without `secateur`.

While a plug-in is imported, these names are resolved as in the root of a clone, unless the user has packages of
these names. A public name is found under any module of `framework` that defined it before; for all other names the
error message gives the new location.
"""

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.framework.plugins.source import ROOT
from secateur.utils.errors import UsageError

OLD_TOPS = ("framework", "utils", "models", "criterions", "trainers", "testers", "losses")


@contextlib.contextmanager
def old_names_allowed() -> Iterator[None]:
    """Resolve old import paths inside the block; they are removed from `sys.modules` afterwards."""
    before = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    finder = _Finder()
    for name in before:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.given:
            sys.modules.pop(name, None)
        sys.modules.update(before)


class _Finder(MetaPathFinder, Loader):
    """Finds modules of Secateur by their old names.

    It loads the current module instead, or one that looks names up in `secateur`.
    """

    def __init__(self) -> None:
        self.given: list[str] = []

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module of Secateur, or None for all other modules."""
        if not _is_ours(fullname):
            return None
        self.given.append(fullname)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None for the default module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the module in `sys.modules`, which the import system allows."""
        name = module.__name__
        is_now = f"secateur.{name}"
        found = None
        if name not in OLD_TOPS and find_spec(is_now.rpartition(".")[0]) is not None:
            found = find_spec(is_now)
        # a module of then may have the name of a room of today, in which its names are not
        if found is not None and found.submodule_search_locations is None:
            sys.modules[name] = importlib.import_module(is_now)
        else:
            sys.modules[name] = _Folder(name)


class _Folder(ModuleType):
    """An old module, whose attributes are the public names."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        front = importlib.import_module("secateur")
        if name in front.__all__:
            return getattr(front, name)
        if self.__name__ in OLD_TOPS:  # a submodule, perhaps
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        raise UsageError(moved(self.__name__, name))


def moved(module: str, name: str) -> str:
    """Return the message with the new location of a name of an old module."""
    definition = re.compile(rf"^(?:def|class) {name}\b|^{name}\b.* = ", re.MULTILINE)
    for path in sorted((ROOT / "framework").rglob("*.py")):
        if definition.search(path.read_text(encoding="utf-8")):
            place = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            return f"{module} has moved: {name} is now in secateur.{place}"
    return f"{module}.{name} no longer exists: import public names by `from secateur import ...`"


def old_import(error: BaseException) -> str | None:
    """Return the message for an old import that ran after its plug-in was imported; None for other errors."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None or not _is_ours(error.name):
        return None
    return (
        f"'{error.name}' is an old import path, which is resolved only at the top of a plug-in: "
        f"use `from secateur import ...`"
    )


def _is_ours(name: str) -> bool:
    """Whether an old name refers to a module of Secateur and not to a package of the user."""
    top = name.partition(".")[0]
    if top not in OLD_TOPS:
        return False
    spec = PathFinder.find_spec(top)
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
    return all(not place or Path(place).resolve().is_relative_to(ROOT) for place in places)
