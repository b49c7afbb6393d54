"""Batches of a data set; they depend on the seed only, not on the global random state."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from secateur.utils.errors import UsageError
from secateur.utils.limits import check_all, optional, whole
from secateur.utils.loading.augment import AUGMENTATIONS, augment
from secateur.utils.loading.dataset import CheckedFiles
from secateur.utils.suggest import unknown

Batch = tuple[Tensor, Tensor]

#: the augmentation whose crops are taken from image files at full resolution, before these are resized
FROM_FILES = "resized_crop_flip"


def seeded(*key: int | str) -> torch.Generator:
    """Return a generator seeded by `key`, such as ("epoch", seed, 3).

    The key is hashed, so that adjacent seeds and epochs do not give related streams.
    """
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


class BatchLoader(ABC):
    """Yields (inputs float32 normalised (B, C, H, W), targets int64 (B,)) on one device.

    Every epoch has a separate generator, seeded by (seed, epoch): the global random state is neither read nor
    changed.

    Args:
        targets: Labels, int64 (N,).
        batch_size: Samples per batch; the last batch may be smaller.
        mean: Mean per channel, of pixels in [0, 1].
        std: Standard deviation per channel, of pixels in [0, 1].
        seed: Seed of order and augmentation.
        train: Shuffle, augment, and drop a last batch of a single sample, which BatchNorm cannot be trained on.
        augment: A name of `AUGMENTATIONS`.
        limit: Largest number of batches per epoch; None for no limit.
        device: Device of the batches.
        memory_format: Memory format of the inputs; can be changed at any time.

    Attributes:
        epoch: Number of the epoch that the next `iter()` starts, incremented by each; setting it to e continues as
            after e epochs.
    """

    #: whether the images are files that random crops can be taken from
    cuts_files = False

    def __init__(
        self, targets: Tensor, *, batch_size: int, mean: Sequence[float], std: Sequence[float], seed: int = 0,
        train: bool = False, augment: str = "none", limit: int | None = None,
        device: str | torch.device = "cpu", memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:  # fmt: skip
        limits = {"batch_size": whole(1), "limit": optional(whole(1))}
        check_all({"batch_size": batch_size, "limit": limit}, limits)
        if augment not in AUGMENTATIONS:
            raise UsageError(unknown("augment", augment, AUGMENTATIONS))
        self.device = torch.device(device)
        self.targets = targets.to(self.device)
        self.batch_size = batch_size
        self.seed = seed
        self.train = train
        self.augment = augment
        self.limit = limit
        self.memory_format = memory_format
        self.epoch = 0
        # (x / 255 - mean) / std with one operation fewer; "unit" (0 and 1) is exactly x / 255
        self._offset = 255 * torch.tensor(mean, dtype=torch.float32, device=self.device)[:, None, None]
        self._scale = 255 * torch.tensor(std, dtype=torch.float32, device=self.device)[:, None, None]

    @property
    def num_samples(self) -> int:
        """The number of samples in the set, without the limit."""
        return len(self.targets)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        batches = math.ceil(self.num_samples / self.batch_size)
        if self.train and batches > 1 and self.batch_size > 1 and self.num_samples % self.batch_size == 1:
            batches -= 1
        return batches if self.limit is None else min(batches, self.limit)

    def __iter__(self) -> Iterator[Batch]:
        """Start epoch `self.epoch`."""
        epoch = self.epoch
        self.epoch += 1
        return self._epoch_batches(epoch)

    def _epoch_batches(self, epoch: int) -> Iterator[Batch]:
        generator = seeded("epoch", self.seed, epoch)
        if self.train:
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.arange(self.num_samples)
        seeds, steps = None, self.augment
        if self.train and self.cuts_files and self.augment == FROM_FILES:
            seeds, steps = torch.randint(2**62, order.shape, generator=generator).split(self.batch_size), "flip"
        for images, targets in self._fetch(order.split(self.batch_size)[: len(self)], seeds):
            if self.train:
                images = augment(images, steps, generator)
            yield self._normalized(images), targets

    def plain(self, chunks: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield a batch without augmentation for each of `chunks`: positions in the set, int64 (B,).

        Can be used during an epoch.
        """
        for images, targets in self._fetch(chunks):
            yield self._normalized(images), targets

    def _normalized(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32)  # always a copy: `images` is uint8
        return floats.sub_(self._offset).div_(self._scale).contiguous(memory_format=self.memory_format)

    @abstractmethod
    def _fetch(self, chunks: Sequence[Tensor], seeds: Sequence[Tensor] | None = None) -> Iterator[Batch]:
        """Yield uint8 images (B, C, H, W) and targets (B,) on the device for each chunk of positions.

        Args:
            chunks: Positions in the set.
            seeds: Seed of a random crop of each image's file; only if `cuts_files`.
        """


class TensorLoader(BatchLoader):
    """Batches of images (uint8, (N, C, H, W)) that are stored on the device.

    Normalised images are not cached: a cache saved less than 10 microseconds per batch.
    """

    def __init__(self, images: Tensor, targets: Tensor, **options: Any) -> None:
        super().__init__(targets, **options)
        self.images = images.to(self.device)

    def _fetch(self, chunks: Sequence[Tensor], seeds: Sequence[Tensor] | None = None) -> Iterator[Batch]:
        positions = torch.cat(list(chunks)).to(self.device)  # one transfer for all
        for chunk in positions.split([len(chunk) for chunk in chunks]):
            yield self.images.index_select(0, chunk), self.targets.index_select(0, chunk)


class FolderLoader(BatchLoader):
    """Batches of image files, decoded by worker processes.

    Random numbers are drawn in the main process, so that the batches do not depend on the number of workers.

    Args:
        files: The image files.
        targets: Labels, int64 (N,).
        positions: Those of the files that the loader has, in its order, int64 (N,); None for all.
        num_workers: Number of worker processes; 0 decodes in the main process.
        options: Arguments of `BatchLoader`.
    """

    def __init__(
        self, files: CheckedFiles, targets: Tensor, *,
        positions: Tensor | None = None, num_workers: int = 2, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(targets, **options)
        whole(0)("workers", num_workers)
        self.num_workers = num_workers
        self._files, self.cuts_files = files, files.cuts_files
        self._positions = torch.arange(len(files)) if positions is None else positions

    def _fetch(self, chunks: Sequence[Tensor], seeds: Sequence[Tensor] | None = None) -> Iterator[Batch]:
        plan: list[list[Any]] = [self._positions[chunk].tolist() for chunk in chunks]
        if seeds is not None:  # an epoch may be limited to fewer chunks
            plan = [list(zip(keys, part.tolist(), strict=True)) for keys, part in zip(plan, seeds, strict=False)]
        stream: DataLoader[Any] = DataLoader(
            self._files,  # type: ignore[arg-type]  # has the methods of a map-style Dataset
            batch_sampler=plan,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the default would draw from the global random state
        )
        try:
            for images, chunk in zip(stream, chunks, strict=True):
                yield images.to(self.device, non_blocking=True), self.targets[chunk.to(self.device)]
        except UsageError as error:
            # the traceback and the workers form a reference cycle; if only the garbage collector breaks it, each
            # worker delays the exit by 5 seconds
            error.__traceback__ = None
            # torch prepends the worker's traceback to the message
            raise UsageError(str(error).strip().rpartition("UsageError: ")[2]) from None
