"""List the folders and image files in a folder, sorted; irregular files with names of images are rejected."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from secateur import UsageError
from secateur.utils.files.regular_file import check_regular, reading

#: suffixes of image files, in lower case
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def folder_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in `folder`, without hidden ones."""
    return tuple(entry.name for entry in _entries(folder) if entry.name[0] != "." and _is_folder(entry))


def images_in(folder: Path) -> list[str]:
    """Return the paths of the image files in `folder`, sorted by name, without hidden and other files.

    Raises UsageError for a named pipe, a folder or another irregular file with the name of an image file.
    """
    return _images(entry for entry in _entries(folder) if entry.name[0] != ".")


def image_tree(folder: Path) -> list[str]:
    """Return the paths of the image files in `folder` and all folders below, in the order of torchvision.

    Links are followed. Raises the errors of `images_in`, and UsageError for a folder that is reached more than
    once through links, as in a loop.
    """
    images_of: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    pending = [str(folder)]
    for place in pending:
        with reading(place):
            status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            raise UsageError(f"{place} is a link to a folder inside {folder}: its images would be used twice")
        seen.add((status.st_dev, status.st_ino))
        entries = _entries(place)
        images_of[place] = _images(entries)
        pending += [entry.path for entry in entries if _is_folder(entry)]
    return [path for place in sorted(images_of) for path in images_of[place]]


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with reading(folder), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, among others
        check_regular(entry.path)
        raise


def _images(entries: Iterable[os.DirEntry[str]]) -> list[str]:
    images = [entry for entry in entries if entry.name.lower().endswith(ENDINGS)]
    for entry in images:
        with contextlib.suppress(OSError):
            if entry.is_file():
                continue
        check_regular(entry.path)
    return [entry.path for entry in images]
