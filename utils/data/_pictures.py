"""Image files of any size as square tensors of one size."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from secateur import UsageError
from secateur.utils.files.regular_file import open_regular
from secateur.utils.loading.augment import AREAS, LOG_RATIO, TRIES
from secateur.utils.loading.dataset import reading
from secateur.utils.suggest import one_line

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
"""What an image file may hold, whatever its ending: bitmaps only, since others (EPS) are run as programs."""

LARGEST_IMAGE = 2**30
"""Bytes of an image file."""

LONGEST = 100
"""How many times the shorter side of a photograph its longer one may be before its ends are cut off."""


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
        return self._square(index, self.whole)

    def cropped(self, index: int, seed: int) -> Tensor:
        """Return a random piece of one image (uint8, (C, image_size, image_size)), decided by `seed` alone.

        The piece has 8 to 100 % of the image's area and sides of 3:4 to 4:3, as in arXiv:1409.4842.
        """
        size = (self.image_size, self.image_size)

        def piece(image: Image.Image) -> Image.Image:
            box = random_box(*image.size, random.Random(seed))
            return image.crop(box).resize(size, Image.Resampling.BILINEAR)

        return self._square(index, piece)

    def whole(self, image: Image.Image) -> Image.Image:
        """Return the largest square from the middle of an image, resized."""
        return ImageOps.fit(image, (self.image_size, self.image_size), Image.Resampling.BILINEAR)

    def _square(self, index: int, make: Callable[[Image.Image], Image.Image]) -> Tensor:
        path = Path(self.paths[index])
        with reading(path), warnings.catch_warnings(), open_regular(path, LARGEST_IMAGE) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of what is an error
            try:
                with Image.open(file, formats=FORMATS) as image:
                    square = make(image.convert(self.mode))
            except Image.DecompressionBombError as error:
                raise UsageError(f"{path} has too many pixels: {one_line(error)}") from error
        pixels = torch.from_numpy(np.array(square))
        return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


class Photographs(Pictures):
    """Pictures tested as is usual for ImageNet: shorter side to 256 of 224 parts, then the middle cut out."""

    def whole(self, image: Image.Image) -> Image.Image:
        """Return the middle of an image: what 224x224 pixels show once its shorter side has 256."""
        size, short = self.image_size, self.image_size * 256 // 224
        image = _without_ends(image)
        width, height = (short * side // min(image.size) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + size, top + size))


def _without_ends(image: Image.Image) -> Image.Image:
    """The middle of an image that is far longer than wide, of which resizing would make an enormous one."""
    width, height = image.size
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, width - left, height - top))


def random_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random piece: its area uniform, its ratio uniform in the logarithm.

    Ten pieces are tried; where none lies inside a very long image, it is the largest from its middle whose
    ratio is allowed.
    """
    for _ in range(TRIES):
        area = width * height * draw.uniform(*AREAS)
        ratio = math.exp(draw.uniform(-LOG_RATIO, LOG_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * math.exp(LOG_RATIO))), min(height, round(width * math.exp(LOG_RATIO)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
