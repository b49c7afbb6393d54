"""Classifiers whose smallest perturbations are known by a formula."""

import torch
from torch import Tensor, nn

from secateur.framework.studies.robustness.points import PixelModel, Points

SIZE = 6


def linear(classes: int = 2, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> nn.Module:
    """A linear classifier of one-channel images, float64, that takes images normalised by mean and std."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(SIZE * SIZE, classes).double()
    with torch.no_grad():
        weight = torch.randn(classes, SIZE * SIZE, generator=generator, dtype=torch.float64)
        layer.weight.copy_(weight * std)
        # of pixels p the network computes W p, whatever the normalisation, less what a grey image gives
        layer.bias.copy_(weight.sum(dim=1) * mean - 0.5 * weight.sum(dim=1))
    return nn.Sequential(nn.Flatten(), layer).eval()


def grey_points(model: PixelModel, count: int = 24, seed: int = 1) -> Points:
    """Images near mid-grey, not at 0 or 1, clear cases; the targets are what the network says."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(4 * count, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    pixels = 0.5 + 0.1 * noise.clamp(-3, 3)
    two = model(pixels).topk(2, dim=1).values
    pixels = pixels[(two[:, 0] - two[:, 1]).argsort()[-count:]]
    return Points(pixels, model(pixels).argmax(dim=1))


def smallest(model: nn.Module, pixels: Tensor, dual: float, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Distance to the nearest other class: min over k of (f_y - f_k) / ||w_y - w_k||, in the dual norm."""
    layer = model[1]  # type: ignore[index]
    weight = layer.weight.detach() / std
    logits = model((pixels - mean) / std).detach()
    own = logits.argmax(dim=1)
    apart = weight[own][:, None] - weight[None]
    sizes = torch.linalg.vector_norm(apart, dual, dim=2)
    margins = (logits.gather(1, own[:, None]) - logits) / sizes.clamp(min=1e-30)
    margins[torch.arange(len(own)), own] = torch.inf
    return margins.min(dim=1).values
