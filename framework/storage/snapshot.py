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
    root, skipped = source.resolve(), {path.resolve() for path in skip}
    for place, folders, files in os.walk(root):  # neither links to folders nor unreadable folders are entered
        folder, copy = Path(place), target / Path(place).relative_to(root)
        never = NEVER.union(top_never) if folder == root else NEVER
        folders[:] = [name for name in folders if name not in never and _is_part(folder / name, skipped)]
        copy.mkdir(parents=True, exist_ok=True)
        for name in set(files) - never:
            try:
                if _is_source(folder / name, root, skipped):
                    shutil.copy2(folder / name, copy / name)
            except (FileNotFoundError, PermissionError) as error:
                # removed in the meantime or unreadable: not part of the source that this run has imported
                if error.filename is None or Path(error.filename).is_relative_to(target):
                    raise


def _is_part(folder: Path, skipped: Collection[Path]) -> bool:
    """Whether a folder is part of the source: not to be skipped, no virtual environment and no run folder."""
    is_run = os.path.isfile(folder / "command.txt") and os.path.isdir(folder / "codebase")
    return folder not in skipped and not is_run and not os.path.exists(folder / "pyvenv.cfg")


def _is_source(file: Path, root: Path, skipped: Collection[Path]) -> bool:
    if file.is_symlink():  # links may be circular or lead outside the source tree
        real = file.resolve()
        inside = real.is_relative_to(root) and not any(real.is_relative_to(folder) for folder in skipped)
        if not inside or NEVER.intersection(real.relative_to(root).parts):
            return False
    return file.is_file() and file.stat().st_size <= LARGEST
