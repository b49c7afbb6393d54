"""Common corruptions of images: noise, blur and reduced contrast, each at five strengths.

Based on the benchmark of arXiv:1903.12261, with strengths for small images. Inputs are pixels in [0, 1] of shape
(N, C, H, W).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

#: standard deviation of the noise, in pixel values; that of the blur, in pixels; remaining share of the contrast
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),
    "blur": (0.5, 0.75, 1.0, 1.5, 2.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}


def noise(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Add independent Gaussian noise to every pixel and channel, and clamp to [0, 1]."""
    drawn = torch.randn(pixels.shape, generator=generator, dtype=torch.float32)
    return (pixels + strength * drawn.to(pixels)).clamp(0, 1)


def blur(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Apply a Gaussian blur, truncated at 3 standard deviations, with replicated borders."""
    reach = max(1, math.ceil(3 * strength))
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-(at**2) / (2 * strength**2))
    kernel = (kernel / kernel.sum()).to(pixels)
    blurred = F.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        weight = kernel.view(shape).repeat(pixels.shape[1], 1, 1, 1)
        blurred = F.conv2d(blurred, weight, groups=len(weight))
    return blurred.clamp(0, 1)


def contrast(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Move every channel of every image towards its mean; `strength` is the remaining share of the contrast."""
    middle = pixels.mean(dim=(2, 3), keepdim=True)
    return (middle + strength * (pixels - middle)).clamp(0, 1)


Corruption = Callable[[Tensor, float, torch.Generator], Tensor]
CORRUPTIONS: dict[str, Corruption] = {"noise": noise, "blur": blur, "contrast": contrast}
