"""Base class of published data sets of image files with one folder for each class."""

from __future__ import annotations

import functools
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from secateur import UsageError
from secateur.utils.data._listing import folder_names, images_in
from secateur.utils.data._pictures import Pictures
from secateur.utils.loading.dataset import FolderDataSet, SearchedDataSet
from secateur.utils.suggest import one_line


class _ClassCount:
    """Descriptor of `num_classes`: that of the published set on the class, that of the files on an object."""

    def __get__(self, owner: ClassFolders | None, kind: type[ClassFolders]) -> int:
        root = owner.root() if owner is not None else None
        return kind.published if owner is None or root is None else len(owner.folder_names)


class ClassFolders(SearchedDataSet, FolderDataSet):
    """A published set of image files, in folders named after the classes.

    In both parts the label of an image is the position of its class among the sorted names of the training
    folders; a class that is missing in a part is an error. A different number of classes than in the published set
    is accepted, with a line in `remarks`.
    """

    published: ClassVar[int]  # number of classes of the published set
    needs: ClassVar[tuple[str, ...]] = ("train", "val")  # required subfolders
    layout: ClassVar[str]  # description of the required files
    names_of: ClassVar[dict[str, str]] = {}  # class folder -> name to show
    mode: ClassVar[str] = "RGB"
    pictures: ClassVar[type[Pictures]] = Pictures  # conversion of a file to a square image
    in_channels = 3
    image_size: int | None = 128
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    num_classes: int = _ClassCount()  # type: ignore[assignment]

    @abstractmethod
    def files(self, root: Path, train: bool) -> dict[str, list[str]]:
        """Return the paths of the images of every class of one part, by the name of the class folder."""

    def needed(self, train: bool) -> tuple[str, ...]:
        """Return the required subfolders, which are those of both parts."""
        return self.needs

    def has(self, place: Path, name: str) -> bool:
        """Return whether a folder has a subfolder."""
        return (place / name).is_dir()

    def contents(self) -> str:
        """Return `layout`."""
        return self.layout

    @functools.cached_property
    def folder_names(self) -> tuple[str, ...]:
        """The names of the training part's class folders, sorted: the position is the label."""
        names = self.classes(self.present())
        if not names:
            raise UsageError(f"{self.name}: {self.present()} has no class folders: it must hold {self.layout}")
        return names

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the classes, in the order of their labels."""
        return tuple(self.names_of.get(name, name) for name in self.folder_names)

    def classes(self, root: Path) -> tuple[str, ...]:
        """Return the names of the class folders of the training part, sorted."""
        return folder_names(root / "train")

    def open(self, train: bool, image_size: int) -> Pictures:
        """Return the images of one part as squares of `image_size` pixels; UsageError if some are missing."""
        root = self.present()
        images = self.files(root, train)
        part = f"{root} ({'training' if train else 'test'} part)"
        extra = sorted(set(images) - set(self.folder_names))
        if extra:
            raise UsageError(one_line(f"{self.name}: {part} has classes that the training part lacks: "
                                      f"{', '.join(extra)}"))  # fmt: skip
        empty = [name for name in self.folder_names if not images.get(name)]
        if empty:
            raise UsageError(one_line(f"{self.name}: {part} has no images of {', '.join(empty)}: it must hold "
                                      f"{self.layout}"))  # fmt: skip
        if len(self.folder_names) != self.published:
            count = len(self.folder_names)
            self.remarks = (f"{self.name}: {root} has {count} classes, the published set {self.published}",)
        files = [(path, label) for label, name in enumerate(self.folder_names) for path in images[name]]
        return self.pictures(files, image_size, self.mode)


class ImageNetPart(ClassFolders):
    """Classes of ImageNet in train/WNID/* and val/WNID/*."""

    published = 10
    layout = "train/CLASS/*.JPEG and val/CLASS/*.JPEG"

    def files(self, root: Path, train: bool) -> dict[str, list[str]]:
        """Return the paths of the images of every class of one part, by the name of the class folder."""
        part = root / ("train" if train else "val")
        return {name: images_in(part / name) for name in folder_names(part)}
