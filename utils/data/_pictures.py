"""Image files of any size as square tensors of one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils.dataset import reading


class Pictures:
    """Image files that become square images of one size when they are asked for.

    files: (path, label) of each. image_size: side in pixels. mode: PIL's "RGB" (3 channels) or "L" (1).
    """

    def __init__(self, files: Sequence[tuple[str, int]], image_size: int, mode: str = "RGB") -> None:
        self.paths = [path for path, _ in files]
        self.targets = [target for _, target in files]
        self.image_size = image_size
        self.mode = mode

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image (uint8, (C, image_size, image_size)): shorter side resized, centre cut out."""
        path = Path(self.paths[index])
        with reading(path), Image.open(path) as image:
            size = (self.image_size, self.image_size)
            square = ImageOps.fit(image.convert(self.mode), size, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(square))
        return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
