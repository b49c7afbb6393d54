"""What published sets of image files with one folder for each class have in common."""

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
    """`num_classes`: for the class that of the published set, for an object that of the folder it has found."""

    def __get__(self, owner: ClassFolders | None, kind: type[ClassFolders]) -> int:
        root = owner.root() if owner is not None else None
        return kind.published if owner is None or root is None else len(owner.folder_names)


class ClassFolders(FolderDataSet):
    """A published set of image files, in folders that bear the names of the classes.

    Looked for under the names of `folders` in --data_dir, in --data_dir itself, and under these names in the
    default download folder; else downloaded, where torchvision can. The label of an image is the position of
    its class among the sorted names of the training folders, in both parts; a class that only one of the parts
    has is an error that names it. A folder with another number of classes than the published set is taken as
    it is, and told in `remarks`.
    """

    published: ClassVar[int]  # number of classes of the set as it was published
    folders: ClassVar[tuple[str, ...]]  # names its folder goes by, the likeliest first
    needs: ClassVar[tuple[str, ...]] = ("train", "val")  # what lies in it
    origin: ClassVar[str]  # where to get it, for a set that torchvision cannot download
    layout: ClassVar[str]  # what must lie where, in words
    names_of: ClassVar[dict[str, str]] = {}  # class folder -> name to show
    mode: ClassVar[str] = "RGB"
    pictures: ClassVar[type[Pictures]] = Pictures  # how a file becomes a square
    in_channels = 3
    image_size: int | None = 128
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    num_classes: int = _ClassCount()  # type: ignore[assignment]

    @abstractmethod
    def files(self, root: Path, train: bool) -> dict[str, list[str]]:
        """Return the paths of the images of every class of one part, by the name of the class folder."""

    def sources(self) -> tuple[str, ...]:
        """Return the addresses torchvision downloads from; none where it cannot."""
        return ()

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Let torchvision download the set to `root / folders[0]`."""
        raise NotImplementedError

    def root(self) -> Path | None:
        """Return the folder of the set, or None where it is nowhere (yet)."""
        for place in self._places():
            lacking = [name for name in self.needs if not (place / name).is_dir()]
            if not lacking:
                return place
            if len(lacking) < len(self.needs):
                # the user means this folder: taking the set from elsewhere would hide that it is incomplete
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
        """What to call the classes, in the order of their labels."""
        return tuple(self.names_of.get(name, name) for name in self.folder_names)

    def classes(self, root: Path) -> tuple[str, ...]:
        """Return the names of the class folders of the training part, sorted."""
        return folder_names(root / "train")

    def open(self, train: bool, image_size: int) -> Pictures:
        """Return the images of one part as squares of `image_size` pixels; UsageError where some are missing."""
        root = self._present()
        found = self.files(root, train)
        part = f"{root} ({'training' if train else 'test'} part)"
        extra = sorted(set(found) - set(self.folder_names))
        if extra:
            raise UsageError(one_line(f"{self.name}: {part} has classes that the training part lacks: "
                                      f"{', '.join(extra)}"))  # fmt: skip
        empty = [name for name in self.folder_names if not found.get(name)]
        if empty:
            raise UsageError(one_line(f"{self.name}: {part} has no images of {', '.join(empty)}: it must hold "
                                      f"{self.layout}"))  # fmt: skip
        if len(self.folder_names) != self.published:
            count = len(self.folder_names)
            self.remarks = (f"{self.name}: {root} has {count} classes, the published set {self.published}",)
        files = [(path, label) for label, name in enumerate(self.folder_names) for path in found[name]]
        return self.pictures(files, image_size, self.mode)

    def _places(self) -> list[Path]:
        """Return every folder to look in, first to last."""
        own = []
        if self.data_dir is not None:
            given = Path(os.path.expanduser(self.data_dir))
            if os.path.exists(given) and not os.path.isdir(given):
                raise UsageError(f"--data_dir {given} is not a folder")
            own = [*(given / name for name in self.folders), given]
        return list(dict.fromkeys([*own, *(dataset.DOWNLOAD_FOLDER / name for name in self.folders)]))

    def _present(self) -> Path:
        """Return the folder of the set, downloaded if need be; UsageError where it cannot be had."""
        found = self.root()
        if found is not None:
            return found
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
