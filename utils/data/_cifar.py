"""Base class of CIFAR-10 and CIFAR-100."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur import UsageError, torchvision
from secateur.utils.files.regular_file import check_regular, reading
from secateur.utils.loading.dataset import LARGEST_FILE, FileDataSet


class CifarDataSet(FileDataSet):
    """50,000 + 10,000 colour images of 32 x 32 pixels in pickled batches with known checksums."""

    in_channels = 3
    image_size = 32

    def _checksums(self, train: bool) -> dict[str, str]:
        """Return file name -> md5 of the files that one part needs."""
        base = getattr(torchvision().datasets, self.name)
        batches = dict(base.train_list if train else base.test_list)
        return {**batches, base.meta["filename"]: base.meta["md5"]}

    def needed(self, train: bool) -> tuple[str, ...]:
        """Return the names of the batch files of one part and of the file with the class names."""
        return tuple(self._checksums(train))

    def read(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Return images (uint8, (N, 3, 32, 32)) and labels (int64, (N,)) from the files in `folder`.

        The files are pickles, which can run arbitrary code: only those with the published checksum are opened.
        """
        for name, md5 in self._checksums(train).items():
            path = folder / name
            check_regular(path, LARGEST_FILE)  # before the whole file is read
            if not torchvision().datasets.utils.check_integrity(path, md5):
                raise UsageError(f"cannot read {path}: damaged or not the published file (md5 is not {md5})")
        base = getattr(torchvision().datasets, self.name)
        # torchvision checks, and so opens, both parts; an empty list skips the other part
        other = {"test_list" if train else "train_list": [], "base_folder": folder.name}
        with reading(folder), warnings.catch_warnings():
            # the published pickles use a format of arrays that is deprecated in NumPy 2.4
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            part = type(base.__name__, (base,), other)(folder.parent, train=train)
            images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            return images, torch.tensor(part.targets, dtype=torch.int64)

    def sources(self) -> tuple[str, ...]:
        """Return the address of torchvision's archive."""
        return (getattr(torchvision().datasets, self.name).url,)

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Download and unpack the archive to `root / folders[0]`."""
        getattr(torchvision().datasets, self.name)(root, download=True)
