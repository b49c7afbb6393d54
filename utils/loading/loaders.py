"""Loaders for training, evaluation and scoring, independent of the global random state."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.utils.errors import UsageError
from secateur.utils.limits import number, whole
from secateur.utils.loading.batches import Batch, BatchLoader, FolderLoader, TensorLoader, seeded
from secateur.utils.loading.dataset import (
    FOLDER_IMAGE_SIZE,
    CheckedFiles,
    DataSet,
    FolderDataSet,
    check_class_names,
    check_description,
    check_normalization,
    checked_files,
    checked_part,
)
from secateur.utils.memory import check_memory
from secateur.utils.suggest import unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORMALIZATIONS = ("dataset", "unit", "imagenet")
#: share of the training images that `tuning` holds out for validation and test
TUNING_SHARE = 0.2
#: images per batch when all images are decoded into memory
PRELOAD_BATCH = 64


@dataclass
class Loaders:
    """Loaders of a run.

    Attributes:
        train: Training images.
        val: Validation images, which select checkpoints; None without validation.
        test: Test images.
        in_channels: Channels of an image.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.
        mean: Mean per channel, of pixels in [0, 1], that inputs are normalised with.
        std: Standard deviation per channel, of pixels in [0, 1], that inputs are normalised with.
        class_names: Names of the classes; None if they have none.
        remarks: Lines about the data set for the log.
    """

    train: BatchLoader
    val: BatchLoader | None
    test: BatchLoader
    in_channels: int
    num_classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None
    remarks: tuple[str, ...] = ()

    def scoring_batches(
        self, kind: str, *, batches: int | None, samples: int | None, batch_size: int, seed: int, step: int,
        per_class: int | None = None,
    ) -> list[Batch]:  # fmt: skip
        """Return the batches of training images that a criterion scores with, normalised, without augmentation.

        One of `batches`, `samples` and `per_class` is given. The choice depends on (seed, step) only.

        Args:
            kind: "none" (no batches), "random" (drawn without replacement until the set is exhausted, then
                again), or "balanced" (`samples // num_classes` images of every class, classes alternating).
            batches: Number of batches.
            samples: Number of samples.
            batch_size: Samples per batch.
            seed: Seed of the run.
            step: Number of the pruning step.
            per_class: Images of every class for "balanced", limited to the size of the smallest class.
        """
        if kind == "none":
            return []
        kinds = {"random": self._random, "balanced": self._balanced}
        if kind not in kinds:
            raise UsageError(unknown("kind of scoring data", kind, ("none", *kinds)))
        if per_class is not None and kind == "balanced" and batches is None and samples is None:
            smallest = int(torch.bincount(self.train.targets.cpu(), minlength=self.num_classes).min())
            samples = min(per_class, max(1, smallest)) * self.num_classes
        if (batches is None) == (samples is None):
            raise UsageError(f"scoring data: batches or samples must be given, not {batches} and {samples}")
        batch_size = min(batch_size, self.train.num_samples)  # as in training, limited to the size of the set
        wanted = samples if samples is not None else (batches or 0) * batch_size
        if wanted < 1 or batch_size < 1:
            raise UsageError(f"scoring data: {wanted} samples in batches of {batch_size}, expected at least 1")
        generator = seeded("scoring", seed, step)
        return list(self.train.plain(kinds[kind](wanted, generator).split(batch_size)))

    def check_balanced(self, samples: int) -> None:
        """Raise UsageError unless the training set has `samples` images, the same number of every class."""
        self._balanced(samples, torch.Generator())

    def _random(self, wanted: int, generator: torch.Generator) -> Tensor:
        """Return `wanted` positions, drawn without replacement until the set is exhausted."""
        total = self.train.num_samples
        rounds = math.ceil(wanted / total)
        return torch.cat([torch.randperm(total, generator=generator) for _ in range(rounds)])[:wanted]

    def _balanced(self, wanted: int, generator: torch.Generator) -> Tensor:
        """Return `wanted // num_classes` positions of every class: one of each, then the next of each, ..."""
        count = wanted // self.num_classes
        if count == 0:
            raise UsageError(f"{wanted} scoring samples are too few for {self.num_classes} classes")
        targets = self.train.targets.cpu()
        rows = []
        for label in range(self.num_classes):
            members = (targets == label).nonzero().flatten()
            if len(members) < count:
                raise UsageError(f"{wanted} balanced scoring samples need {count} training images of every "
                                 f"class, class {label} has {len(members)}")  # fmt: skip
            rows.append(members[torch.randperm(len(members), generator=generator)[:count]])
        return torch.stack(rows, dim=1).flatten()


def normalization(dataset: DataSet, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of pixels in [0, 1], for a value of --normalize.

    "dataset" uses those of the data set, "unit" 0 and 1, which keeps pixels in [0, 1], and "imagenet" the
    constants of ImageNet, for grey images their averages over the three channels, 0.449 and 0.226.
    """
    channels = dataset.in_channels
    if name == "dataset":
        check_normalization(dataset)
        return tuple(dataset.mean), tuple(dataset.std)
    if name == "unit":
        return (0.0,) * channels, (1.0,) * channels
    if name != "imagenet":
        raise UsageError(unknown("normalize", name, NORMALIZATIONS))
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if channels == 1:
        return (round(sum(IMAGENET_MEAN) / 3, 6),), (round(sum(IMAGENET_STD) / 3, 6),)
    raise UsageError(f"normalize imagenet: for 1 or 3 channels, {dataset.name} has {channels}")


def resized(images: Tensor, size: int, chunk: int = 1024) -> Tensor:
    """Return uint8 images (N, C, H, W) as uint8 (N, C, size, size); bilinear, antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    result = images.new_empty((*images.shape[:2], size, size))
    for start in range(0, len(images), chunk):  # in chunks, since floats need four times the memory
        floats = images[start : start + chunk].float()
        floats = F.interpolate(floats, (size, size), mode="bilinear", antialias=True, align_corners=False)
        result[start : start + chunk] = floats.round_().clamp_(0, 255).to(torch.uint8)
    return result


def split(total: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the positions, ascending int64, of training and validation samples; disjoint, together all."""
    number(least=0, below=1)("val_share", share)
    held = max(1, round(share * total)) if share > 0 else 0
    if held >= total:
        raise UsageError(f"val_share {share} of {total} training images leaves none for training")
    order = torch.randperm(total, generator=seeded("split", seed))
    return order[held:].sort().values, order[:held].sort().values


def _open(
    dataset: DataSet, train: bool, size: int, decoders: int | None = None
) -> tuple[Tensor | CheckedFiles, Tensor]:
    """Return the images of one part (uint8 tensor, or files) and their labels (int64).

    With `decoders`, this number of processes decodes all files into a tensor; with None the files are returned.
    """
    if isinstance(dataset, FolderDataSet):
        files, targets = checked_files(dataset.open(train, size), dataset, train, size)
        return (files if decoders is None else preloaded(files, dataset, size, decoders)), targets
    images, targets = checked_part(dataset.load(train), dataset, train)
    check_memory(len(images) * images.shape[1] * size**2, f"image_size {size}: {dataset.name}")
    return resized(images, size), targets


def preloaded(files: CheckedFiles, dataset: DataSet, size: int, workers: int) -> Tensor:
    """Return all images (uint8, (N, C, size, size)), decoded by `workers` processes (0: the main process)."""
    shape = (len(files), dataset.in_channels, size, size)
    check_memory(math.prod(shape), f"preload_all_data: {dataset.name}")
    images = torch.empty(shape, dtype=torch.uint8)
    whole = FolderLoader(files, torch.arange(len(files)), num_workers=workers, batch_size=PRELOAD_BATCH,
                         mean=(0.0,) * shape[1], std=(1.0,) * shape[1])  # fmt: skip
    for part, positions in whole._fetch(torch.arange(len(files)).split(PRELOAD_BATCH)):
        images[positions] = part
    return images


def _loader(
    source: Tensor | CheckedFiles, targets: Tensor, positions: Tensor | None, workers: int, **options: Any
) -> BatchLoader:
    """Return the loader for the result of `_open`, for the samples at `positions` (None: all)."""
    if positions is not None:
        targets = targets[positions]
    if isinstance(source, Tensor):
        return TensorLoader(source if positions is None else source[positions], targets, **options)
    return FolderLoader(source, targets, positions=positions, num_workers=workers, **options)


def make_loaders(
    dataset: DataSet, *, batch_size: int, seed: int, val_share: float = 0.1, tuning: bool = False,
    augment: str = "none", normalize: str = "dataset", image_size: int | None = None,
    num_classes: int | None = None, limit_train_batches: int | None = None,
    limit_test_batches: int | None = None, random_shuffle_labels: bool = False,
    device: str | torch.device = "cpu", workers: int = 2, preload: bool = False,
) -> Loaders:  # fmt: skip
    """Return the loaders of a run on `dataset`.

    Args:
        dataset: The data set.
        batch_size: Samples per batch.
        seed: Seed of split, order and augmentation.
        val_share: Share of the training images held out for validation, drawn with `seed`; 0 for no validation.
        tuning: Hold out 0.2 of the training images and test on them; the test files are not opened.
        augment: Augmentation of the training images.
        normalize: See `normalization`.
        image_size: Side in pixels; None for the native one (folders: 64).
        num_classes: Expected number of classes; None accepts any.
        limit_train_batches: Largest number of batches of a training epoch.
        limit_test_batches: Largest number of batches of a test or a validation.
        random_shuffle_labels: Permute the labels of the training images.
        device: Device of the batches.
        workers: Number of processes that decode image files.
        preload: Decode all images of a folder now and store them on the device. Batches are unchanged, unless
            `augment` crops the files: then the resized images are cropped.

    Raises:
        UsageError: If an argument or the data set is invalid.
    """
    check_description(dataset)
    mean, std = normalization(dataset, normalize)
    if num_classes is not None and num_classes != dataset.num_classes:
        raise UsageError(f"num_classes {num_classes}: {dataset.name} has {dataset.num_classes} classes")
    size = dataset.image_size or FOLDER_IMAGE_SIZE if image_size is None else image_size
    whole(1)("image_size", size)
    common: dict[str, Any] = {"batch_size": batch_size, "mean": mean, "std": std, "seed": seed,
                              "device": device, "workers": workers}  # fmt: skip
    decoders = workers if preload else None
    source, targets = _open(dataset, True, size, decoders)
    # of a batch, as uint8 and as float32
    pixels = min(batch_size, len(targets)) * dataset.in_channels * size**2
    check_memory(5 * pixels, f"image_size {size} and batch_size {batch_size}: a batch")
    kept, held = split(len(targets), TUNING_SHARE if tuning else val_share, seed)
    val = _loader(source, targets, held, limit=limit_test_batches, **common) if len(held) else None
    if random_shuffle_labels:
        targets = targets.clone()
        targets[kept] = targets[kept[torch.randperm(len(kept), generator=seeded("labels", seed))]]
    train = _loader(source, targets, kept, train=True, augment=augment, limit=limit_train_batches, **common)
    if tuning and val is not None:
        test = val
    else:
        test = _loader(*_open(dataset, False, size, decoders), None, limit=limit_test_batches, **common)
    check_class_names(dataset)
    classes, names = dataset.num_classes, dataset.class_names
    return Loaders(train, val, test, dataset.in_channels, classes, size, mean, std, names, dataset.remarks)
