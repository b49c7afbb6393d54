"""Check the attributes of a data set and the images and labels that it returns; errors name the set.

Data sets are plug-ins, so their results are checked before models and trainers use them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.utils.errors import UsageError
from secateur.utils.suggest import one_line

if TYPE_CHECKING:
    from secateur.utils.loading.dataset import DataSet, ImageFiles

LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_description(dataset: DataSet) -> None:
    """Raise UsageError unless the numbers of channels and classes and the image size are positive integers."""
    for attribute in ("in_channels", "num_classes"):
        value = getattr(dataset, attribute, None)
        if type(value) is not int or value < 1:
            raise UsageError(f"{dataset.name}: {attribute} must be an integer from 1 on, got {_shown(value)}")
    size = getattr(dataset, "image_size", None)
    if size is not None and (type(size) is not int or size < 1):
        raise UsageError(f"{dataset.name}: image_size must be None or an integer from 1 on, got {_shown(size)}")


def check_normalization(dataset: DataSet) -> None:
    """Raise UsageError unless `mean` and `std` are finite numbers, one for each channel, and `std` positive."""
    channels = dataset.in_channels
    for attribute, least, kind in (("mean", -math.inf, "finite"), ("std", 0.0, "finite positive")):
        values = getattr(dataset, attribute, None)
        if not _are_numbers(values, channels, above=least):
            raise UsageError(f"{dataset.name}: {attribute} must be {channels} {kind} numbers, one for each "
                             f"channel, got {_shown(values)}")  # fmt: skip


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
    _check_plain(images, wanted, where)
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != dataset.in_channels or 0 in shape[2:]:
        raise UsageError(f"{where} must return {wanted}, got {_kind(images)}")
    _check_plain(labels, "int64 labels of shape (N,)", where)
    return images, _checked_labels(labels, len(images), dataset, train, where)


def checked_files(files: ImageFiles, dataset: DataSet, train: bool, size: int) -> tuple[ImageFiles, Tensor]:
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
    labels = _checked_labels(labels, count, dataset, train, where)
    checked = CheckedFiles(files, (dataset.in_channels, size, size), where)
    checked[0]  # the other images are read after the run folder was created
    return checked, labels


class CheckedFiles:
    """Image files whose images are checked when they are read: uint8 tensors of one shape.

    Args:
        files: The files.
        shape: Shape of every image.
        where: Beginning of the error message.
    """

    def __init__(self, files: ImageFiles, shape: tuple[int, int, int], where: str) -> None:
        self.files = files
        self.targets = files.targets
        self.shape = shape
        self.where = where
        if hasattr(files, "cropped"):
            self.cropped = self._cropped

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image, uint8 (C, image_size, image_size); UsageError for any other value."""
        return self._checked(self.files[index], index)

    def _cropped(self, index: int, seed: int) -> Tensor:
        return self._checked(self.files.cropped(index, seed), index)  # type: ignore[attr-defined]

    def _checked(self, image: Tensor, index: int) -> Tensor:
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.shape != self.shape:
            found = _kind(image) if isinstance(image, Tensor) else type(image).__name__
            raise UsageError(f"{self.where}: image {index} is {found}, expected uint8 {self.shape}")
        return image


def _checked_labels(labels: Tensor, count: int, dataset: DataSet, train: bool, where: str) -> Tensor:
    if count == 0:
        raise UsageError(f"{dataset.name} has no {'training' if train else 'test'} images")
    if labels.dim() != 1 or labels.dtype not in LABEL_DTYPES:
        raise UsageError(f"{where} must return int64 labels of shape (N,), got {_kind(labels)}")
    if len(labels) != count:
        raise UsageError(f"{where} returns {count} images and {len(labels)} labels, not one for each")
    labels = labels.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= dataset.num_classes:
        raise UsageError(f"{dataset.name} has labels {low}..{high}, not 0..{dataset.num_classes - 1}")
    return labels


def _check_plain(tensor: Tensor, wanted: str, where: str) -> None:
    """Raise UsageError for nested, meta and sparse tensors."""
    kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else None
    if kind is None and tensor.layout != torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
    if kind is not None:
        raise UsageError(f"{where} must return {wanted}, got a {kind} tensor")


def _are_numbers(values: Any, count: int, above: float) -> bool:
    if isinstance(values, str):
        return False
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return False
    return len(numbers) == count and all(math.isfinite(number) and number > above for number in numbers)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _shown(value: object) -> str:
    return one_line(repr(value), 60)
