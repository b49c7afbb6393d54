"""What a classifier's outputs say, and how often it is what the targets say."""

from __future__ import annotations

import torch
from torch import Tensor


def guesses(outputs: Tensor) -> Tensor:
    """The class that each row of outputs (B, classes) stands for, int64 (B,); -1 where one is no number."""
    return torch.where(outputs.isnan().any(dim=1), -1, outputs.argmax(dim=1))


def correct_samples(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many samples of the batch have their largest output at the target, a scalar on the device."""
    return (guesses(outputs) == targets).sum()


def confusion_counts(outputs: Tensor, targets: Tensor) -> Tensor:
    """How often each true class (rows) was taken for each class (columns): int64 (C, C).

    outputs (B, C), targets int64 (B,) below C; outputs that are no numbers are not counted. Nothing is read from
    the device.
    """
    classes = outputs.shape[1]
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=outputs.device)
    guessed = guesses(outputs)
    places = targets * classes + guessed.clamp(min=0)
    return counts.index_add_(0, places, (guessed >= 0).long()).view(classes, classes)
