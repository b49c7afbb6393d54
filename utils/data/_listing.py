"""List the folders and image files in a folder, sorted; irregular files with names of images are rejected."""

import os
from pathlib import Path

from secateur import UsageError
from secateur.utils.files.regular_file import check_regular, reading

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case."""


def folder_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in `folder`, without hidden ones."""
    with reading(folder), os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.name[0] != "." and _is_folder(entry)))


def images_in(folder: Path) -> list[str]:
    """Return the paths of the image files in `folder`, sorted by name, without hidden and other files.

    Raises UsageError for a named pipe, a folder or another irregular file with the name of an image file.
    """
    with reading(folder), os.scandir(folder) as entries:
        images = [entry for entry in entries if entry.name.lower().endswith(ENDINGS) and entry.name[0] != "."]
        _check_files(images)
    return [str(folder / name) for name in sorted(entry.name for entry in images)]


def image_tree(folder: Path) -> list[str]:
    """Return the paths of the image files in `folder` and all folders below, in the order of torchvision.

    Links are followed. Raises the errors of `images_in`, and UsageError for a folder that is reached more than
    once through links, as in a loop.
    """
    images_of: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    pending = [str(folder)]
    while pending:
        place = pending.pop()
        with reading(Path(place)):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                raise UsageError(f"{place} is a link to a folder inside {folder}: its images would be used twice")
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        images = [entry for entry in entries if entry.name.lower().endswith(ENDINGS)]
        _check_files(images)
        images_of[place] = [entry.path for entry in images]
        pending += [entry.path for entry in entries if _is_folder(entry)]
    return [path for place in sorted(images_of) for path in images_of[place]]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, among others
        check_regular(entry.path)
        raise


def _check_files(entries: list[os.DirEntry[str]]) -> None:
    for entry in entries:
        try:
            regular = entry.is_file()
        except OSError:
            regular = False
        if not regular:
            check_regular(entry.path)
