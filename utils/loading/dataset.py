"""Base classes of data sets, the search for their files, and checks of what they return.

Data sets are plug-ins, so their results are checked before models and trainers use them; errors name the set.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from secateur.utils.errors import UsageError
from secateur.utils.files.download import download
from secateur.utils.files.regular_file import check_regular
from secateur.utils.limits import check_all, optional, whole
from secateur.utils.suggest import one_line, one_line_errors
from secateur.utils.tensors import described, unusual_kind

#: default folder of downloads, unless data_dir is given; relative to the current folder
DOWNLOAD_FOLDER = Path("data")
#: default side in pixels to which the images of a folder are resized, unless image_size is given
FOLDER_IMAGE_SIZE = 64
#: largest size in bytes, unpacked, of a file that is read as a whole; published files have up to 155 MB
LARGEST_FILE = 2**28
LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class DataSet(ABC):
    """Base class of data sets of labelled images with a training and a test part.

    A data set is a subclass in a file of `utils/data/` with the same name, which is also its name on the command
    line. It defines the class attributes below and implements `load`.

    Args:
        data_dir: Folder with the files; None searches the default folders of the set.
        download: Whether files that are not found may be downloaded.

    Attributes:
        name: Name of the class; set automatically.
        in_channels: Channels of an image.
        num_classes: Number of classes.
        image_size: Side of the square images in pixels; None if the files have different sizes.
        mean: Mean per channel, of pixels in [0, 1], for `--normalize dataset`.
        std: Standard deviation per channel, of pixels in [0, 1], for `--normalize dataset`.
        class_names: Names of the classes; None if they have none.
        remarks: Lines about the opened files that are shown to the user.
        needs_folder: Whether the set is only found in a folder that the user names; a literal, as the next one.
        recommended: Settings of a run on this data set that the user did not give, by their names on the command
            line, such as `{"augment": "flip"}`. It is read without importing the file and must be a literal.

    Example:
        >>> import torch
        >>> from secateur import DataSet
        >>> class Noise(DataSet):
        ...     in_channels, num_classes, image_size, mean, std = 1, 2, 8, (0.5,), (0.29,)
        ...
        ...     def load(self, train):
        ...         return torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8), torch.arange(20) % 2
        >>> Noise.name, Noise().load(train=True)[0].shape
        ('Noise', torch.Size([20, 1, 8, 8]))
    """

    name: ClassVar[str]
    in_channels: int
    num_classes: int
    image_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()
    needs_folder: ClassVar[bool] = False
    recommended: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__

    def __init__(self, *, data_dir: str | Path | None = None, download: bool = True) -> None:
        self.data_dir = data_dir
        self.download = download

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Load one part of the data set; only the files of this part are opened.

        Args:
            train: Whether to load the training part, else the test part.

        Returns:
            Images, uint8 in 0..255 of shape (N, C, H, W), and labels, int64 of shape (N,).

        Raises:
            UsageError: If files are missing or damaged.
        """


class ImageFiles(Protocol):
    """One part of a folder data set; images are decoded on access."""

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

        S is `image_size`, or 64 if the files have different sizes.
        """
        files = self.open(train, self.image_size or FOLDER_IMAGE_SIZE)
        images = torch.stack([files[index] for index in range(len(files))])
        return images, torch.tensor(files.targets, dtype=torch.int64)


class SearchedDataSet(DataSet):
    """A data set whose files are searched for, and downloaded if torchvision supports it.

    They are searched for in --data_dir (in the folders that torchvision and others use, or directly in it), in the
    folders of the operating system and in the default download folder. If they are not found, they are downloaded
    to --data_dir or the default download folder.
    """

    folders: ClassVar[tuple[str, ...]]  # possible folders of the set below --data_dir; the first is torchvision's
    system_folders: ClassVar[tuple[Path, ...]] = ()
    completed: ClassVar[bool] = False  # whether a download adds missing files to an incomplete set
    origin: ClassVar[str]  # source of a set that torchvision cannot download

    @abstractmethod
    def needed(self, train: bool) -> tuple[str, ...]:
        """Return the names of the files or folders that one part needs."""

    @abstractmethod
    def has(self, place: Path, name: str) -> bool:
        """Return whether a folder has a needed file or folder."""

    @abstractmethod
    def contents(self) -> str:
        """Describe the contents of the folder of the set."""

    def sources(self) -> tuple[str, ...]:
        """Return the addresses torchvision downloads from; empty if it does not support the set."""
        return ()

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Download the set to `root / folders[0]` with torchvision, from the given subset of `sources()`."""
        raise NotImplementedError

    def root(self, train: bool = True) -> Path | None:
        """Return the first folder that has everything one part needs, or None."""
        for place in self._places():
            lacking = [name for name in self.needed(train) if not self.has(place, name)]
            if not lacking:
                return place
            chosen = place in self._own_folders() or not self.completed
            if chosen and len(lacking) < len(self.needed(train)):
                # using files from elsewhere would hide that the folder the user named is incomplete
                raise UsageError(f"{self.name}: {place} is incomplete, it lacks {', '.join(lacking)}: "
                                 f"it must hold {self.contents()}")  # fmt: skip
        return None

    def present(self, train: bool = True) -> Path:
        """Return the folder of the set, after a download if necessary; raises UsageError if it fails."""
        root = self.root(train)
        if root is not None:
            return root
        target = (self._own_folders() or [DOWNLOAD_FOLDER])[-1]
        if not self.sources():
            reason: str | None = f"it cannot be downloaded from here: get {self.origin}"
        elif not self.download:
            reason = "downloading is switched off"
        else:
            reason = download(self.fetch, self.sources(), target, self.folders[0])
        if reason is None:
            return target / self.folders[0]
        looked = ", ".join(str(place) for place in self._places())
        raise UsageError(
            f"{self.name} not found: looked in {looked}; {reason}; "
            f"data_dir must be the folder that holds {self.contents()}",
            argument="data_dir",
        )

    def _own_folders(self) -> list[Path]:
        """Return the folders below `data_dir` that may be that of the set, and `data_dir`."""
        if self.data_dir is None:
            return []
        given = Path(os.path.expanduser(self.data_dir))
        if os.path.exists(given) and not os.path.isdir(given):
            raise UsageError(f"data_dir {given} is not a folder", argument="data_dir")
        return [*(given / name for name in self.folders), given]

    def _places(self) -> list[Path]:
        """Return the folders to search, in order."""
        defaults = [DOWNLOAD_FOLDER / name for name in self.folders]
        # data_dir may be one of the default folders
        return list(dict.fromkeys([*self._own_folders(), *self.system_folders, *defaults]))


class FileDataSet(SearchedDataSet):
    """A data set of a few files that torchvision can read and download."""

    completed = True
    suffixes: ClassVar[tuple[str, ...]] = ("",)  # possible suffixes of a file

    @abstractmethod
    def read(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Return images and labels of one part, as `load` does, from the existing files in `folder`."""

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images (uint8, (N, C, H, W)) and labels (int64, (N,)) of one part."""
        folder = self.present(train)
        images, labels = self.read(folder, train)
        shape, where = (self.in_channels, self.image_size, self.image_size), f"{self.name}: {folder}"
        if tuple(images.shape[1:]) != shape:
            raise UsageError(f"{where} has images of shape {tuple(images.shape[1:])}, not {shape}")
        return images, checked_labels(labels, len(images), self, train, where)

    def has(self, place: Path, name: str) -> bool:
        """Return whether a folder has a file, with any of the suffixes."""
        return self.path(place, name) is not None

    def path(self, folder: Path, name: str) -> Path | None:
        """Return the file `name` in `folder`, with any of its suffixes; None if there is none.

        Raises UsageError if it is not a regular file or larger than any published file.
        """
        paths = [folder / f"{name}{suffix}" for suffix in self.suffixes]
        there = [path for path in paths if os.path.lexists(path)]
        file = next((path for path in there if path.is_file()), None)
        for path in there if file is None else [file]:
            check_regular(path, LARGEST_FILE)
        return file

    def contents(self) -> str:
        """List the files of both parts."""
        ending = f"[{self.suffixes[-1]}]" if len(self.suffixes) > 1 else ""  # "[.gz]": with or without
        return ", ".join(f"{name}{ending}" for name in dict.fromkeys(self.needed(True) + self.needed(False)))


def checked_labels(labels: Tensor, count: int, dataset: DataSet, train: bool, where: str) -> Tensor:
    """Return the labels as int64; UsageError, beginning with `where`, unless there is one for each image."""
    if count == 0:
        raise UsageError(f"{where} has no {'training' if train else 'test'} images")
    if unusual_kind(labels) or labels.dim() != 1 or labels.dtype not in LABEL_DTYPES:
        raise UsageError(f"{where} must return int64 labels of shape (N,), got {described(labels)}")
    if len(labels) != count:
        raise UsageError(f"{where} has {count} images and {len(labels)} labels, not one for each")
    labels = labels.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= dataset.num_classes:
        raise UsageError(f"{where} has labels {low}..{high}, not 0..{dataset.num_classes - 1}")
    return labels


def check_description(dataset: DataSet) -> None:
    """Raise UsageError unless the numbers of channels and classes and the image size are positive integers."""
    limits = {"in_channels": whole(1), "num_classes": whole(1), "image_size": optional(whole(1))}
    with one_line_errors():
        check_all({name: getattr(dataset, name, None) for name in limits}, limits, f"{dataset.name}: ")


def check_normalization(dataset: DataSet) -> None:
    """Raise UsageError unless `mean` and `std` are finite numbers, one for each channel, and `std` positive."""
    channels = dataset.in_channels
    for attribute, least, kind in (("mean", -math.inf, "finite"), ("std", 0.0, "finite positive")):
        values = getattr(dataset, attribute, None)
        try:
            numbers = torch.as_tensor(values, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            numbers = torch.empty(0)
        if numbers.shape != (channels,) or not bool((numbers.isfinite() & (numbers > least)).all()):
            raise UsageError(f"{dataset.name}: {attribute} must be {channels} {kind} numbers, one for each "
                             f"channel, got {one_line(repr(values), 60)}")  # fmt: skip


def check_class_names(dataset: DataSet) -> None:
    """Raise UsageError unless there is one name for each class, or `class_names` is None."""
    names = dataset.class_names
    if names is not None and (isinstance(names, str) or len(names) != dataset.num_classes):
        raise UsageError(f"{dataset.name}: class_names has {len(names)} names for {dataset.num_classes} classes")


def checked_part(part: Any, dataset: DataSet, train: bool) -> tuple[Tensor, Tensor]:
    """Return the result of `load` with int64 labels; UsageError unless images are uint8 and labels integers."""
    where = f"{dataset.name}: load(train={train})"
    if not isinstance(part, tuple | list) or len(part) != 2 or not all(isinstance(x, Tensor) for x in part):
        inside = f" of {', '.join(type(x).__name__ for x in part)}" if isinstance(part, tuple | list) else ""
        raise UsageError(one_line(f"{where} must return two tensors, images and labels, got "
                                  f"{type(part).__name__}{inside}"))  # fmt: skip
    images, labels = part
    wanted = f"uint8 images of shape (N, {dataset.in_channels}, H, W)"
    fits = not unusual_kind(images) and images.dtype == torch.uint8 and images.dim() == 4
    if not fits or images.shape[1] != dataset.in_channels or 0 in images.shape[2:]:
        raise UsageError(f"{where} must return {wanted}, got {described(images)}")
    return images, checked_labels(labels, len(images), dataset, train, where)


class CheckedFiles:
    """Image files whose images are checked when they are read: uint8 tensors of one shape.

    Args:
        files: The files.
        shape: Shape of every image.
        where: Beginning of the error message.

    Attributes:
        cuts_files: Whether random crops can be taken from the files.
    """

    def __init__(self, files: Any, shape: tuple[int, int, int], where: str) -> None:
        self._files, self._shape, self._where = files, shape, where
        self.cuts_files = hasattr(files, "cropped")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    def __getitem__(self, key: int | tuple[int, int]) -> Tensor:
        """Return an image by its number, or by its number and the seed of a random crop; check it."""
        image = self._files.cropped(*key) if isinstance(key, tuple) else self._files[key]
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.shape != self._shape:
            index = key[0] if isinstance(key, tuple) else key
            raise UsageError(f"{self._where}: image {index} is {described(image)}, expected uint8 {self._shape}")
        return image


def checked_files(files: ImageFiles, dataset: DataSet, train: bool, size: int) -> tuple[CheckedFiles, Tensor]:
    """Return the files, each image checked when it is read (the first one now), and the labels as int64."""
    where = f"{dataset.name}: open(train={train})"
    given = getattr(files, "targets", None)
    try:
        labels = torch.as_tensor(given)
        count = len(files)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where} must return files with a length and a list of integer targets: "
                         f"{one_line(error)}") from error  # fmt: skip
    if labels.numel() == 0:
        labels = labels.to(torch.int64)
    labels = checked_labels(labels, count, dataset, train, where)
    checked = CheckedFiles(files, (dataset.in_channels, size, size), where)
    checked[0]  # the other images are read after the run folder was created
    return checked, labels
