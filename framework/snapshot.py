"""Copy a source tree into a run folder, without what is not source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

LARGEST = 50 * 2**20  # bytes; a larger file is data, not source
NEVER = {
    ".git", ".hg", ".svn", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache",
    ".hypothesis", ".ipynb_checkpoints",
}  # fmt: skip
TOP_NEVER = {"results", "data"}


def copy_tree(source: Path, target: Path, skip: Collection[Path] = (), top_never: Collection[str] = ()) -> None:
    """Copy the files below `source` to the same places below `target`.

    Left out are version control, virtual environments, caches, run folders, files over 50 MB, whatever a
    symbolic link outside `source` points to, the folders `skip` and, at the top, the names `top_never`.
    """
    root = source.resolve()
    _copy(root, target, root, {path.resolve() for path in skip}, frozenset(top_never))


def _copy(folder: Path, target: Path, root: Path, skip: Collection[Path], never: Collection[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.name in NEVER or entry.name in never:
            continue
        if entry.is_dir(follow_symlinks=False):
            if path not in skip and not _is_environment(path) and not is_run_folder(path):
                _copy(path, target / entry.name, root, skip, ())
        elif _is_source(path, entry, root, skip):
            shutil.copy2(path, target / entry.name)


def _is_source(path: Path, entry: os.DirEntry[str], root: Path, skip: Collection[Path]) -> bool:
    if entry.is_symlink():  # links to folders could go in circles, links to the outside could lead anywhere
        real = path.resolve()
        inside = real.is_relative_to(root) and not any(real.is_relative_to(folder) for folder in skip)
        if not inside or NEVER.intersection(real.relative_to(root).parts):
            return False
    return path.is_file() and path.stat().st_size <= LARGEST


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists()


def is_run_folder(folder: Path) -> bool:
    """Whether a folder looks like one a run has left."""
    return (folder / "command.txt").is_file() and (folder / "codebase").is_dir()
