"""Base class of the data sets in the format of MNIST."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secateur import UsageError, torchvision
from secateur.utils.files.regular_file import open_regular, reading
from secateur.utils.loading.dataset import LARGEST_FILE, FileDataSet


class IdxDataSet(FileDataSet):
    """60,000 + 10,000 grey images of 28 x 28 pixels in four idx files, gzipped or not."""

    reader: ClassVar[str]  # torchvision's class of the set
    in_channels = 1
    num_classes = 10
    image_size = 28
    suffixes = ("", ".gz")

    def needed(self, train: bool) -> tuple[str, ...]:
        """Return the names of the image file and the label file of one part."""
        part = "train" if train else "t10k"
        return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"

    def read(self, folder: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Return images (uint8, (N, 1, 28, 28)) and labels (int64, (N,)) from the files in `folder`."""
        images_name, labels_name = self.needed(train)
        return self._array(folder, images_name, 3).unsqueeze(1), self._array(folder, labels_name, 1).long()

    def _array(self, folder: Path, name: str, dims: int) -> Tensor:
        """Read a file of bytes: a magic number, the size of each dimension in four bytes, the values."""
        path = self.path(folder, name) or folder / name
        with (
            reading(path),
            open_regular(path) as stored,
            gzip.open(stored) if path.suffix == ".gz" else stored as file,
        ):
            content = file.read(LARGEST_FILE + 1)
            if len(content) > LARGEST_FILE:
                raise UsageError(f"{path} unpacks to more than {LARGEST_FILE:,} bytes, the most that is read")
            if content[:4] != bytes([0, 0, 8, dims]):
                raise UsageError(f"cannot read {path}: not an idx file of bytes with {dims} dimensions")
            sizes = np.frombuffer(content, ">u4", dims, offset=4).tolist()
            return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(sizes))

    def sources(self) -> tuple[str, ...]:
        """Return torchvision's mirrors."""
        return tuple(getattr(torchvision().datasets, self.reader).mirrors)

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Download the four files to `root / folders[0]`."""
        base = getattr(torchvision().datasets, self.reader)
        # torchvision derives the folder from the name of the class, so the subclass must have the same name
        type(base.__name__, (base,), {"mirrors": list(sources)})(root, download=True)
