"""Read image files of any size as square tensors of one size."""

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
from secateur.utils.files.regular_file import open_regular, reading
from secateur.utils.loading.augment import AREAS, LOG_RATIO, TRIES
from secateur.utils.suggest import one_line

#: accepted formats of image files, independent of the suffix: bitmaps only, since EPS runs as a program
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
#: largest size of an image file in bytes
LARGEST_IMAGE = 2**30
#: largest aspect ratio of a photograph; the ends of longer ones are cut off
LONGEST = 100


class Pictures:
    """Image files that are read as square images of one size on access.

    Args:
        files: Path and label of each file.
        image_size: Side in pixels.
        mode: PIL's "RGB" (3 channels) or "L" (1 channel).
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
        """Return one image (uint8, (C, image_size, image_size)): shorter side resized, centre cropped."""
        return self._square(index, self.whole)

    def cropped(self, index: int, seed: int) -> Tensor:
        """Return a random crop of one image (uint8, (C, image_size, image_size)), determined by `seed`.

        The crop has 8 to 100 % of the image's area and sides of 3:4 to 4:3, as in arXiv:1409.4842.
        """
        size = (self.image_size, self.image_size)

        def piece(image: Image.Image) -> Image.Image:
            box = random_box(*image.size, random.Random(seed))
            return image.crop(box).resize(size, Image.Resampling.BILINEAR)

        return self._square(index, piece)

    def whole(self, image: Image.Image) -> Image.Image:
        """Return the largest central square of an image, resized."""
        return ImageOps.fit(image, (self.image_size, self.image_size), Image.Resampling.BILINEAR)

    def _square(self, index: int, make: Callable[[Image.Image], Image.Image]) -> Tensor:
        path = Path(self.paths[index])
        with reading(path), warnings.catch_warnings(), open_regular(path, LARGEST_IMAGE) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error at twice the size
            try:
                with Image.open(file, formats=IMAGE_FORMATS) as image:
                    square = make(image.convert(self.mode))
            except Image.DecompressionBombError as error:
                raise UsageError(f"{path} has too many pixels: {one_line(error)}") from error
        pixels = torch.from_numpy(np.array(square))
        return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


class Photographs(Pictures):
    """Images with the test crop of ImageNet: shorter side resized to 256/224 of the size, then cropped."""

    def whole(self, image: Image.Image) -> Image.Image:
        """Return the central crop of an image, such as 224x224 pixels after resizing the shorter side to 256."""
        size, short = self.image_size, self.image_size * 256 // 224
        image = _without_ends(image)
        width, height = (short * side // min(image.size) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + size, top + size))


def _without_ends(image: Image.Image) -> Image.Image:
    """Return the middle of a very long image, whose resized version would not fit into memory."""
    width, height = image.size
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, width - left, height - top))


def random_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random crop of uniform area and log-uniform aspect ratio.

    Ten crops are tried; if none is inside the image, the largest central crop of an allowed ratio is returned.
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
