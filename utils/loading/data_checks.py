"""Check the attributes of a data set and the images and labels that it returns; errors name the set.

Data sets are plug-ins, so their results are checked before models and trainers use them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from secateur.utils.errors import UsageError
from secateur.utils.limits import check_all, optional, whole
from secateur.utils.loading.dataset import DataSet, ImageFiles, checked_labels
from secateur.utils.suggest import one_line, one_line_errors
from secateur.utils.tensors import described, unusual_kind


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


def checked_files(files: ImageFiles, dataset: DataSet, train: bool, size: int) -> "tuple[CheckedFiles, Tensor]":
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
