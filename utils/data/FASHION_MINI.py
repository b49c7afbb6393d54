from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from secateur import DataSet
from secateur.utils.data.FASHION import FASHION
from secateur.utils.files.regular_file import check_zip, open_regular, reading
from secateur.utils.loading.dataset import LARGEST_FILE


class FASHION_MINI(DataSet):
    """Embedded part of Fashion-MNIST: 6,000 + 2,000 grey 28x28 images of clothes, 10 classes.

    Exactly 600 training and 200 test images of every class, chosen by `benchmarks/make_fashion_mini.py`, which
    also computed `mean` and `std`. Part of the source code, so `data_dir` and `download` have no effect.
    The licence of the images is in FASHION_MINI.LICENSE.txt.
    """

    file: ClassVar[Path] = Path(__file__).with_name("fashion_mini.npz")
    in_channels = 1
    num_classes = 10
    image_size = 28
    mean = (0.2859,)
    std = (0.3534,)
    class_names = FASHION.class_names

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return all images (uint8, (N, 1, 28, 28)) and labels (int64, (N,)) of one part."""
        part = "train" if train else "test"
        # opened here: given a path, NumPy does not close a damaged file
        with reading(self.file), open_regular(self.file, LARGEST_FILE) as file:
            check_zip(self.file, LARGEST_FILE)
            with np.load(file, allow_pickle=False) as arrays:
                images = torch.from_numpy(arrays[f"{part}_images"])
                labels = torch.from_numpy(arrays[f"{part}_labels"])
        return images.unsqueeze(1), labels.long()
