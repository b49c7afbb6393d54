"""Predicted classes, correct samples and confusion counts of a classifier's outputs."""

import torch
from torch import Tensor


def guesses(outputs: Tensor) -> Tensor:
    """Return the class with the largest output of each row (B, classes), int64 (B,); -1 for rows with NaN."""
    return torch.where(outputs.isnan().any(dim=1), -1, outputs.argmax(dim=1))


def correct_samples(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count the samples of a batch with the largest output at the target; a scalar on the device."""
    return (guesses(outputs) == targets).sum()


def confusion_counts(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count true classes (rows) by predicted classes (columns). No host synchronisation.

    Args:
        outputs: Logits of shape (B, C); rows with NaN are not counted.
        targets: Labels, int64 of shape (B,), below C.

    Returns:
        int64 counts of shape (C, C).
    """
    return confusion_of(guesses(outputs), targets, outputs.shape[1])


def confusion_of(guessed: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Count true classes (rows) by predicted classes (columns), where -1 is not counted; int64 (C, C)."""
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=guessed.device)
    places = targets * classes + guessed.clamp(min=0)
    return counts.index_add_(0, places, (guessed >= 0).long()).view(classes, classes)
