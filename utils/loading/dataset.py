"""What a data set is, and where the files of one are looked for."""

from __future__ import annotations

import contextlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from secateur.utils.errors import UsageError
from secateur.utils.files.download import download
from secateur.utils.files.regular_file import check_regular, unpack_gzip
from secateur.utils.suggest import one_line

DOWNLOAD_FOLDER = Path("data")
"""Where downloads go and are found again, unless --data_dir is given; relative to the current folder."""

FOLDER_IMAGE_SIZE = 64
"""Side in pixels to which the images of a folder are brought unless --image_size says otherwise."""

LARGEST_FILE = 2**28
"""Bytes, unpacked, of the largest file of a set that is read as a whole; the published ones have up to 155 MB."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn every error of a reader inside the `with` block into a UsageError that names `path`."""
    try:
        yield
    except UsageError:
        raise
    # Readers of damaged files (numpy, torch, PIL, pickle, struct, zlib) agree on no narrower class.
    except Exception as error:
        why = one_line(error) or type(error).__name__
        raise UsageError(f"cannot read {path}: damaged, or not what its name says ({why})") from error


class DataSet(ABC):
    """A labelled set of images with a training and a test part.

    One subclass a file in `utils/data/`; the name of the class is the name on the command line. Arguments are
    keyword-only and stored unchanged:

    data_dir: folder that holds the files; None means the usual places of the set.
    download: whether a set that is found nowhere may be fetched from the internet.
    """

    name: ClassVar[str]  # the name of the class
    in_channels: int  # colour channels of an image
    num_classes: int
    image_size: int | None  # native side of the square images in pixels; None where every file has its own
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]; what --normalize dataset subtracts
    std: tuple[float, ...]  # per channel, of pixels in [0, 1]; what --normalize dataset divides by
    class_names: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()  # what the user should know of the files that were opened, a line each

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__

    def __init__(self, *, data_dir: str | Path | None = None, download: bool = True) -> None:
        self.data_dir = data_dir
        self.download = download

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images (uint8, (N, C, H, W), 0..255) and labels (int64, (N,)) of one part.

        Only the files of that part are opened. Raises UsageError where they are missing or damaged.
        """


class ImageFiles(Protocol):
    """One part of a folder data set; images are decoded when they are asked for."""

    targets: list[int]  # the label of every image

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Tensor:
        """Return one image, uint8 (C, image_size, image_size)."""


class FolderDataSet(DataSet):
    """A data set of image files of any size, too large to hold in memory."""

    image_size: int | None = None

    @abstractmethod
    def open(self, train: bool, image_size: int) -> ImageFiles:
        """Return one part, its images cut to squares of `image_size` pixels; UsageError if there are none."""

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return images (uint8, (N, C, S, S)) and labels (int64, (N,)) of one part, which must be small.

        S is `image_size`, or 64 where every file has a size of its own.
        """
        files = self.open(train, self.image_size or FOLDER_IMAGE_SIZE)
        images = torch.stack([files[index] for index in range(len(files))])
        return images, torch.tensor(files.targets, dtype=torch.int64)


class FileDataSet(DataSet):
    """A data set of a few files that torchvision can read and download.

    Looked for in --data_dir (as torchvision lays it out, or lying there directly), then in the folders of the
    operating system, then in the default download folder, then downloaded: to --data_dir, or else to the
    default download folder.
    """

    system_folders: ClassVar[tuple[Path, ...]] = ()
    layout: ClassVar[str]  # torchvision's folder for this set, relative to its root
    suffixes: ClassVar[tuple[str, ...]] = ("",)  # endings under which a file may lie there

    @abstractmethod
    def files(self, train: bool) -> tuple[str, ...]:
        """Return the names of the files that one part needs."""

    @abstractmethod
    def read(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Return images and labels of one part, as `load` does, from files known to lie in `folder`."""

    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """Return the addresses torchvision downloads from."""

    @abstractmethod
    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Let torchvision download the set to `root` from those of `sources()` that answer."""

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images (uint8, (N, C, H, W)) and labels (int64, (N,)) of one part."""
        folder = self._find(train)
        if folder is None:
            folder = self._download()
        images, labels = self.read(folder, train)
        self._check(folder, images, labels)
        return images, labels

    def path(self, folder: Path, name: str) -> Path | None:
        """Return the file called `name`, under any of its endings, in `folder`; None if there is none.

        Raises UsageError for one that is no regular file or larger than any published set.
        """
        paths = [folder / f"{name}{suffix}" for suffix in self.suffixes]
        there = [path for path in paths if os.path.lexists(path)]
        found = next((path for path in there if path.is_file()), None)
        for path in there if found is None else [found]:
            check_regular(path, LARGEST_FILE)
        return found

    def _own_folders(self) -> list[Path]:
        """Return the folders below --data_dir that may hold the files."""
        if self.data_dir is None:
            return []
        root = Path(os.path.expanduser(self.data_dir))
        if os.path.exists(root) and not os.path.isdir(root):
            raise UsageError(f"--data_dir {root} is not a folder")
        return [root / self.layout, root]

    def _places(self) -> list[Path]:
        """Return every folder to look in, first to last."""
        places = [*self._own_folders(), *self.system_folders, DOWNLOAD_FOLDER / self.layout]
        return list(dict.fromkeys(places))  # --data_dir may be one of the usual places

    def _find(self, train: bool) -> Path | None:
        """Return the first place that holds all files of one part, or None."""
        own = self._own_folders()
        for place in self._places():
            missing = [name for name in self.files(train) if self.path(place, name) is None]
            if not missing:
                return place
            if place in own and len(missing) < len(self.files(train)):
                # the user means this folder: taking the files from elsewhere would hide that it is incomplete
                raise UsageError(f"{self.name}: {place} is incomplete, it lacks {', '.join(missing)}")
        return None

    def _download(self) -> Path:
        """Download the set and return the folder with its files; UsageError if that cannot be done."""
        own = self._own_folders()
        root = own[-1] if own else DOWNLOAD_FOLDER
        if self.download:
            why = download(self.fetch, self.sources(), root, self.layout)
        else:
            why = "downloading is switched off"
        if why is None:
            return root / self.layout
        looked = ", ".join(str(place) for place in self._places())
        ending = f"[{self.suffixes[-1]}]" if len(self.suffixes) > 1 else ""  # "[.gz]": with or without
        names = ", ".join(f"{name}{ending}" for name in dict.fromkeys(self.files(True) + self.files(False)))
        raise UsageError(f"{self.name} not found: looked in {looked}; {why}; "
                         f"give the folder that holds {names} with --data_dir")  # fmt: skip

    def _check(self, folder: Path, images: Tensor, labels: Tensor) -> None:
        """Raise UsageError if the files in `folder` hold something other than this data set."""
        shape = (self.in_channels, self.image_size, self.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != shape:
            found = tuple(images.shape[1:])
            raise UsageError(f"{self.name}: {folder} has images of shape {found}, not {shape}")
        if len(images) != len(labels) or len(images) == 0:
            raise UsageError(f"{self.name}: {folder} has {len(images)} images and {len(labels)} labels")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise UsageError(f"{self.name}: {folder} has labels {low}..{high}, not 0..{self.num_classes - 1}")


def gunzipped(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    """Return `read(path)`, for a path that ends in .gz on a temporary unpacked copy of at most `LARGEST_FILE`."""
    check_regular(path, LARGEST_FILE)
    if path.suffix != ".gz":
        return read(str(path))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with plain.open("wb") as unpacked:
            unpack_gzip(path, unpacked, LARGEST_FILE)
        return read(str(plain))
