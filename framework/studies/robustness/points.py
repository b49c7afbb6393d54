"""Prepare the images to attack: pixels in [0, 1], the whole test set or a balanced part of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.utils.classification import guesses
from secateur.utils.errors import RunError
from secateur.utils.loading.batches import Batch, seeded

#: rounding error, beyond [0, 1], of a pixel after undoing the normalisation
ROUNDING = 1e-4


@dataclass(frozen=True)
class Points:
    """Images with labels.

    Attributes:
        pixels: (N, C, H, W) in [0, 1].
        targets: Labels, int64 (N,).
        positions: Indices in the test set, int64 (N,).
    """

    pixels: Tensor
    targets: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, index: Tensor) -> Points:
        """Select the points at `index`, int64 positions or a mask."""
        return Points(self.pixels[index], self.targets[index], self.positions[index.to(self.positions.device)])


class PixelModel(nn.Module):
    """A network with pixels in [0, 1] as input: the normalisation is its first layer.

    Args:
        model: The network, with normalised inputs.
        mean: Mean per channel, of pixels in [0, 1], that the network was trained with.
        std: Standard deviation per channel, of pixels in [0, 1], that the network was trained with.

    Attributes:
        passes: Number of forward passes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        like = next(model.parameters(), torch.zeros(()))
        for name, values in (("mean", mean), ("std", std)):
            tensor = torch.tensor(values, dtype=torch.float64)[:, None, None]
            self.register_buffer(name, tensor.to(like.device, like.dtype), persistent=False)
        self.passes = 0
        self.train(model.training)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits, of shape (B, classes)."""
        self.passes += 1
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
    pixels, targets = [], []
    for inputs, labels in batches:
        shift, scale = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
        pixels.append(inputs * scale.to(inputs) + shift.to(inputs))
        targets.append(labels)
    if not pixels:
        raise RunError("there is nothing to test: the loader has no batches")
    images, labels = torch.cat(pixels), torch.cat(targets)
    low, high = float(images.min()), float(images.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise RunError(f"pixels must be in [0, 1], but undoing the normalisation gave [{low:.4g}, {high:.4g}]: "
                       "mean and std must be those of the inputs")  # fmt: skip
    return Points(images.clamp_(0, 1), labels, torch.arange(len(labels)))


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
    classes = labels.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]
    rank, turn = torch.empty_like(labels), torch.empty_like(labels)
    for place, label in enumerate(classes):  # the n-th image of each class comes in round n
        members = shuffled[labels[shuffled] == label]
        rank[members], turn[members] = torch.arange(len(members)), place
    order = (rank * len(classes) + turn).argsort(stable=True)
    return order[:count].sort().values


@torch.no_grad()
def predictions(model: nn.Module, pixels: Tensor, batch_size: int) -> Tensor:
    """Return the predicted class of each image, int64 (N,); -1 if an output is NaN."""
    classes = []
    for batch in pixels.split(batch_size) if len(pixels) else ():
        classes.append(guesses(model(batch)))
    return torch.cat(classes) if classes else torch.zeros(0, dtype=torch.int64, device=pixels.device)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Disable gradients of the parameters, which attacks do not need; halves the cost of a backward pass."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def wide(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that does not support it."""
    return torch.float32 if device.type == "mps" else torch.float64


def distances(one: Tensor, other: Tensor, norm: str) -> Tensor:
    """Return the distance of each pair of images in a norm, float64 (N,)."""
    apart = (one.to(wide(one.device)) - other.to(wide(one.device))).flatten(1)
    order = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}[norm]
    return torch.linalg.vector_norm(apart, order, dim=1)
