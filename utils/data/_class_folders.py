"""Base classes of data sets of image files with one folder for each class, and the listing of such folders."""

from __future__ import annotations

import contextlib
import functools
import os
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from secateur import UsageError
from secateur.utils.data._pictures import Pictures
from secateur.utils.files.regular_file import check_regular, reading
from secateur.utils.loading.dataset import FolderDataSet, SearchedDataSet
from secateur.utils.suggest import one_line

#: suffixes of image files, in lower case
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ClassFolders(FolderDataSet):
    """A set of image files in folders named after the classes, by default in colour.

    In both parts the label of an image is the position of its class among the sorted names of the training
    folders. Normalised with the constants of ImageNet.
    """

    layout: ClassVar[str]  # description of the required files
    mode: ClassVar[str] = "RGB"
    pictures: ClassVar[type[Pictures]] = Pictures  # conversion of a file to a square image
    names_of: ClassVar[dict[str, str]] = {}  # class folder -> name to show
    lacking: ClassVar[bool] = False  # whether the test part may lack classes
    in_channels = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @abstractmethod
    def part(self, train: bool) -> Path:
        """Return the folder of one part; raises UsageError if there is none."""

    def classes(self) -> tuple[str, ...]:
        """Return the names of the class folders of the training part, sorted."""
        return folder_names(self.part(train=True))

    def images(self, train: bool) -> dict[str, list[str]]:
        """Return the paths of the images of every class of one part, by the name of the class folder."""
        part = self.part(train)
        return {name: images_in(part / name) for name in folder_names(part)}

    @functools.cached_property
    def folder_names(self) -> tuple[str, ...]:
        """The names of the training part's class folders, sorted: the position is the label."""
        names = self.classes()
        if not names:
            raise UsageError(f"{self.name}: {self.part(train=True)} has no class folders: expected {self.layout}")
        return names

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the classes, in the order of their labels."""
        return tuple(self.names_of.get(name, name) for name in self.folder_names)

    def open(self, train: bool, image_size: int) -> Pictures:
        """Return the images of one part as squares of `image_size` pixels; UsageError if some are missing."""
        images = self.images(train)
        part = f"{self.name}: {self.part(train)} ({'training' if train else 'test'} part)"
        extra = sorted(set(images) - set(self.folder_names))
        if extra:
            raise UsageError(one_line(f"{part} has classes that the training part lacks: {', '.join(extra)}"))
        empty = [name for name in self.folder_names if not images.get(name)]
        if empty and (train or not self.lacking or not any(images.values())):
            raise UsageError(one_line(f"{part} has no images of {', '.join(empty)}: expected {self.layout}"))
        files = [(path, label) for label, name in enumerate(self.folder_names) for path in images.get(name, ())]
        return self.pictures(files, image_size, self.mode)


class _ClassCount:
    """Descriptor of `num_classes`: that of the published set on the class, that of the files on an object."""

    def __get__(self, owner: PublishedFolders | None, kind: type[PublishedFolders]) -> int:
        root = owner.root() if owner is not None else None
        return kind.published if owner is None or root is None else len(owner.folder_names)


class PublishedFolders(SearchedDataSet, ClassFolders):
    """A published set; a different number of classes is accepted, with a line in `remarks`."""

    published: ClassVar[int]  # number of classes of the published set
    needs: ClassVar[tuple[str, ...]] = ("train", "val")  # required subfolders
    layout = "train/CLASS/*.JPEG and val/CLASS/*.JPEG"
    image_size: int | None = 128
    num_classes: int = _ClassCount()  # type: ignore[assignment]

    def needed(self, train: bool) -> tuple[str, ...]:
        """Return the required subfolders, which are those of both parts."""
        return self.needs

    def has(self, place: Path, name: str) -> bool:
        """Return whether a folder has a subfolder."""
        return (place / name).is_dir()

    def contents(self) -> str:
        """Return `layout`."""
        return self.layout

    def part(self, train: bool) -> Path:
        """Return the folder of one part, after a download if necessary."""
        return self.present() / ("train" if train else "val")

    def open(self, train: bool, image_size: int) -> Pictures:
        """Return the images of one part as squares of `image_size` pixels; UsageError if some are missing."""
        root, count = self.present(), len(self.folder_names)
        if count != self.published:
            self.remarks = (f"{self.name}: {root} has {count} classes, the published set {self.published}",)
        return super().open(train, image_size)


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
