"""Counting which classes are taken for which."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.calibration import guesses


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
