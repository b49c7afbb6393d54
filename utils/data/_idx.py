"""Base class of the data sets in the format of MNIST."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from secateur import torchvision
from secateur.utils.files.regular_file import reading
from secateur.utils.loading.dataset import FileDataSet, gunzipped


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
        readers = torchvision().datasets.mnist
        images_name, labels_name = self.needed(train)
        images = self._tensor(folder, images_name, readers.read_image_file)
        labels = self._tensor(folder, labels_name, readers.read_label_file)
        return images.unsqueeze(1), labels

    def _tensor(self, folder: Path, name: str, read: Callable[[str], Tensor]) -> Tensor:
        path = self.path(folder, name) or folder / name
        with reading(path):
            return gunzipped(path, read)

    def sources(self) -> tuple[str, ...]:
        """Return torchvision's mirrors."""
        return tuple(getattr(torchvision().datasets, self.reader).mirrors)

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Download the four files to `root / folders[0]`."""
        base = getattr(torchvision().datasets, self.reader)
        # torchvision derives the folder from the name of the class, so the subclass must have the same name
        type(base.__name__, (base,), {"mirrors": list(sources)})(root, download=True)
