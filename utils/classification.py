"""Accuracy, confusion and calibration of a classifier's outputs."""

from typing import Any

import torch
from torch import Tensor

from secateur.utils.tensors import wide

#: number of bins of equal width of the confidence
BINS = 15


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


class Tally:
    """Collects predicted classes and confidences over batches, on their device, and counts them at the end.

    Bin b contains the samples whose confidence, the largest softmax probability, is in (b / BINS, (b + 1) / BINS].
    """

    def __init__(self) -> None:
        self._classes = 0
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of logits (B, classes) and int64 targets (B,). No host synchronisation.

        Outputs with NaN count as wrong, with a confidence of 0.
        """
        confidence = outputs.to(wide(outputs.device)).softmax(dim=1).amax(dim=1).nan_to_num(0.0)
        self._classes = outputs.shape[1]
        self._batches.append((guesses(outputs), targets, confidence))

    def results(self) -> dict[str, Any]:
        """Return the results as a dictionary, which is empty if nothing was counted.

        `accuracy` over the `samples`; `ece`, the mean over the samples of |accuracy - confidence| of their bin
        (arXiv:1706.04599); `calibration_bins`; `per_class_accuracy` (None for a class without samples);
        `confusion`, a row for each true class, without outputs with NaN.
        """
        if not self._batches:
            return {}
        guessed, targets, confidence = (torch.cat(parts).cpu() for parts in zip(*self._batches, strict=True))
        right, samples = (guessed == targets).double(), len(targets)
        confusion = confusion_of(guessed, targets, self._classes).tolist()
        of_class = torch.bincount(targets, minlength=self._classes).tolist()
        at = ((confidence * BINS).ceil() - 1).clamp(0, BINS - 1).long()
        columns = (torch.bincount(at, weights, BINS) for weights in (None, right, confidence.double()))
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        return {
            "accuracy": float(right.sum()) / samples,
            "samples": samples,
            "ece": sum(abs(hits - total) for _, hits, total in rows) / samples,
            "calibration_bins": [
                {
                    "from": number / BINS,
                    "to": (number + 1) / BINS,
                    "samples": count,
                    "accuracy": hits / count if count else None,
                    "confidence": total / count if count else None,
                }
                for number, (count, hits, total) in enumerate(rows)
            ],
            "per_class_accuracy": [
                confusion[label][label] / count if count else None for label, count in enumerate(of_class)
            ],
            "confusion": confusion,
        }
