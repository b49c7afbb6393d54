"""Copying of a source tree into a run folder, without data, caches and environments."""

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
    """Copy the files below `source` to the same relative paths below `target`.

    Excluded are version control, virtual environments, caches, run folders, files over 50 MB, symbolic links to
    targets outside `source`, the folders `skip`, unreadable files and, at the top level, the names `top_never`.
    """
    root = source.resolve()
    _copy(root, target, root, {path.resolve() for path in skip}, frozenset(top_never))


def _copy(folder: Path, target: Path, root: Path, skip: Collection[Path], never: Collection[str]) -> None:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)  # first, since it may be unreadable
    target.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        if entry.name in NEVER or entry.name in never:
            continue
        try:
            _copy_entry(entry, target, root, skip)
        except (FileNotFoundError, PermissionError) as error:
            # removed in the meantime or unreadable: not part of the source that this run has imported
            if error.filename is None or Path(error.filename).is_relative_to(target):
                raise


def _copy_entry(entry: os.DirEntry[str], target: Path, root: Path, skip: Collection[Path]) -> None:
    path = Path(entry.path)
    if entry.is_dir(follow_symlinks=False):
        if path not in skip and not _is_environment(path) and not is_run_folder(path):
            _copy(path, target / entry.name, root, skip, ())
    elif _is_source(path, entry, root, skip):
        shutil.copy2(path, target / entry.name)


def _is_source(path: Path, entry: os.DirEntry[str], root: Path, skip: Collection[Path]) -> bool:
    if entry.is_symlink():  # links may be circular or lead outside the source tree
        real = path.resolve()
        inside = real.is_relative_to(root) and not any(real.is_relative_to(folder) for folder in skip)
        if not inside or NEVER.intersection(real.relative_to(root).parts):
            return False
    return path.is_file() and path.stat().st_size <= LARGEST


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists()


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is the folder of a run."""
    return (folder / "command.txt").is_file() and (folder / "codebase").is_dir()
