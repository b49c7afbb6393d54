"""Prepare the images to attack: pixels in [0, 1], the whole test set or a balanced part of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.utils.classification import guesses
from secateur.utils.errors import RunError
from secateur.utils.loading.batches import Batch, seeded
from secateur.utils.tensors import wide

#: rounding error, beyond [0, 1], of a pixel after undoing the normalisation
ROUNDING = 1e-4
#: norm -> its order in `torch.linalg.vector_norm`
ORDERS = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}


@dataclass(frozen=True)
class Points:
    """Images with labels.

    Attributes:
        pixels: (N, C, H, W) in [0, 1].
        targets: Labels, int64 (N,).
    """

    pixels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, index: Tensor) -> Points:
        """Select the points at `index`, int64 positions or a mask."""
        return Points(self.pixels[index], self.targets[index])


class PixelModel(nn.Module):
    """A network with pixels in [0, 1] as input: the normalisation is its first layer.

    Args:
        model: The network, with normalised inputs.
        mean: Mean per channel, of pixels in [0, 1], that the network was trained with.
        std: Standard deviation per channel, of pixels in [0, 1], that the network was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        like = next(model.parameters(), torch.zeros(()))
        self.register_buffer("mean", _per_channel(mean, like), persistent=False)
        self.register_buffer("std", _per_channel(std, like), persistent=False)
        self.train(model.training)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits, of shape (B, classes)."""
        outputs = self.model((pixels - self.mean) / self.std)
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise RunError(f"{type(self.model).__name__}: the outputs must have the shape (samples, classes)")
        if pixels.requires_grad and not outputs.requires_grad:  # outputs that do not depend on the image
            outputs = outputs + 0 * pixels.flatten(1)[:, :1]
        return outputs


@torch.no_grad()
def collect(batches: Iterable[Batch], mean: Sequence[float], std: Sequence[float]) -> Points:
    """Collect all images of `batches` and undo their normalisation.

    Raises:
        RunError: If there are no images, or if a result is outside [0, 1], which indicates a wrong mean or std.
    """
    pairs = list(batches)
    if not pairs:
        raise RunError("there is nothing to test: the loader has no batches")
    images, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    images.mul_(_per_channel(std, images)).add_(_per_channel(mean, images))
    low, high = float(images.min()), float(images.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise RunError(f"pixels must be in [0, 1], but undoing the normalisation gave [{low:.4g}, {high:.4g}]: "
                       "mean and std must be those of the inputs")  # fmt: skip
    return Points(images.clamp_(0, 1), targets)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None].to(like)


def balanced(targets: Tensor, count: int, seed: int) -> Tensor:
    """Select `count` positions in ascending order, with equal numbers of every class as far as possible.

    Positions, and the classes of a remainder, are drawn with the seed; if a class has too few images, the other
    classes contribute more. Returns all positions if there are at most `count`.
    """
    labels = targets.cpu()
    if count >= len(labels):
        return torch.arange(len(labels))
    generator = seeded("attacked points", seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    classes, numbers = labels.unique(return_inverse=True)
    turns = torch.randperm(len(classes), generator=generator).argsort()
    order = class_rounds(labels[shuffled]) * len(classes) + turns[numbers[shuffled]]
    return shuffled[order.argsort()[:count]].sort().values


def class_rounds(labels: Tensor) -> Tensor:
    """Return 0 for the first entry of each class, 1 for the second, and so on."""
    of_class = labels[:, None] == labels.unique()
    return of_class.cumsum(dim=0)[of_class] - 1


@torch.no_grad()
def predictions(model: nn.Module, pixels: Tensor, batch_size: int) -> Tensor:
    """Return the predicted class of each image, int64 (N,); -1 if an output is NaN."""
    return torch.cat([guesses(model(batch)) for batch in pixels.split(batch_size)])


def distances(one: Tensor, other: Tensor, norm: str) -> Tensor:
    """Return the distance of each pair of images in a norm, float64 (N,)."""
    apart = (one.to(wide(one.device)) - other.to(wide(one.device))).flatten(1)
    return torch.linalg.vector_norm(apart, ORDERS[norm], dim=1)
