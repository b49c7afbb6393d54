"""Base class of published data sets of image files with one folder for each class."""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from secateur import UsageError
from secateur.utils.data._listing import folder_names, images_in
from secateur.utils.data._pictures import Pictures
from secateur.utils.files.download import download
from secateur.utils.loading import dataset
from secateur.utils.loading.dataset import FolderDataSet
from secateur.utils.suggest import one_line


class _ClassCount:
    """Descriptor of `num_classes`: that of the published set on the class, that of the files on an object."""

    def __get__(self, owner: ClassFolders | None, kind: type[ClassFolders]) -> int:
        root = owner.root() if owner is not None else None
        return kind.published if owner is None or root is None else len(owner.folder_names)


class ClassFolders(FolderDataSet):
    """A published set of image files, in folders named after the classes.

    The set is searched for under the names of `folders` in --data_dir, in --data_dir itself, and under these names
    in the default download folder; otherwise it is downloaded, if torchvision supports it. In both parts the label
    of an image is the position of its class among the sorted names of the training folders; a class that is
    missing in a part is an error. A different number of classes than in the published set is accepted, with a
    line in `remarks`.
    """

    published: ClassVar[int]  # number of classes of the published set
    folders: ClassVar[tuple[str, ...]]  # possible names of its folder, the most likely first
    needs: ClassVar[tuple[str, ...]] = ("train", "val")  # required subfolders
    origin: ClassVar[str]  # source of a set that torchvision cannot download
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

    def sources(self) -> tuple[str, ...]:
        """Return the addresses torchvision downloads from; empty if it does not support the set."""
        return ()

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Download the set to `root / folders[0]` with torchvision."""
        raise NotImplementedError

    def root(self) -> Path | None:
        """Return the folder of the set, or None if it is not found."""
        for place in self._places():
            lacking = [name for name in self.needs if not (place / name).is_dir()]
            if not lacking:
                return place
            if len(lacking) < len(self.needs):
                # the user named this folder: using files from elsewhere would hide that it is incomplete
                raise UsageError(f"{self.name}: {place} is incomplete, it lacks {', '.join(lacking)}: "
                                 f"it must hold {self.layout}")  # fmt: skip
        return None

    @functools.cached_property
    def folder_names(self) -> tuple[str, ...]:
        """The names of the training part's class folders, sorted: the position is the label."""
        names = self.classes(self._present())
        if not names:
            raise UsageError(f"{self.name}: {self._present()} has no class folders: it must hold {self.layout}")
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
        root = self._present()
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

    def _places(self) -> list[Path]:
        """Return the folders to search, in order."""
        requested = []
        if self.data_dir is not None:
            given = Path(os.path.expanduser(self.data_dir))
            if os.path.exists(given) and not os.path.isdir(given):
                raise UsageError(f"--data_dir {given} is not a folder")
            requested = [*(given / name for name in self.folders), given]
        return list(dict.fromkeys([*requested, *(dataset.DOWNLOAD_FOLDER / name for name in self.folders)]))

    def _present(self) -> Path:
        """Return the folder of the set, after a download if necessary; raises UsageError if it fails."""
        root = self.root()
        if root is not None:
            return root
        target = dataset.DOWNLOAD_FOLDER if self.data_dir is None else Path(os.path.expanduser(self.data_dir))
        if not self.sources():
            why = f"it cannot be downloaded from here: get {self.origin}"
        elif not self.download:
            why = "downloading is switched off"
        else:
            failed = download(self.fetch, self.sources(), target, self.folders[0])
            if failed is None:
                return target / self.folders[0]
            why = failed
        looked = ", ".join(str(place) for place in self._places())
        raise UsageError(f"{self.name} not found: looked in {looked}; {why}; give the folder that holds "
                         f"{self.layout} with --data_dir")  # fmt: skip


class ImageNetPart(ClassFolders):
    """Classes of ImageNet in train/WNID/* and val/WNID/*."""

    published = 10
    layout = "train/CLASS/*.JPEG and val/CLASS/*.JPEG"

    def files(self, root: Path, train: bool) -> dict[str, list[str]]:
        """Return the paths of the images of every class of one part, by the name of the class folder."""
        part = root / ("train" if train else "val")
        return {name: images_in(part / name) for name in folder_names(part)}


def torchvision_class(name: str) -> Any:
    """Return torchvision's data set of this name."""
    from secateur import torchvision

    return getattr(torchvision().datasets, name)
