"""Accuracy per class and calibration of a classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.utils.classification import confusion_counts, guesses

BINS = 15


class Tally:
    """Counts the confusion matrix and the confidence histogram over batches, on their device.

    Bin b contains the samples whose confidence, the largest softmax probability, is in (b / bins, (b + 1) / bins].

    Args:
        bins: Number of bins of equal width.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self._confusion: Tensor | None = None
        self._of_class = self._of_bin = torch.empty(0)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch of logits (B, classes) and int64 targets (B,). No host synchronisation.

        Outputs with NaN count as wrong, with a confidence of 0.
        """
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64  # MPS does not support float64
        counts = confusion_counts(outputs, targets)
        if self._confusion is None:
            self._confusion = torch.zeros_like(counts)
            self._of_class = torch.zeros_like(counts[0])
            self._of_bin = torch.zeros(self.bins, 3, dtype=wide, device=outputs.device)
        self._confusion += counts
        self._of_class.index_add_(0, targets, torch.ones_like(targets))
        confidence = outputs.to(wide).softmax(dim=1).amax(dim=1).nan_to_num(0.0)
        at = ((confidence * self.bins).ceil() - 1).clamp(0, self.bins - 1).long()
        right = (guesses(outputs) == targets).to(wide)
        self._of_bin.index_add_(0, at, torch.stack((torch.ones_like(right), right, confidence), dim=1))

    def results(self) -> dict[str, Any]:
        """Return the results as a dictionary, which is empty if nothing was counted.

        `accuracy` over the `samples`; `ece`, the mean over the samples of |accuracy - confidence| of their bin
        (arXiv:1706.04599); `calibration_bins`; `per_class_accuracy` (None for a class without samples);
        `confusion`, a row for each true class, without outputs with NaN.
        """
        if self._confusion is None:
            return {}
        confusion, rows = self._confusion.tolist(), self._of_bin.tolist()
        samples = sum(self._of_class.tolist())
        return {
            "accuracy": sum(right for _, right, _ in rows) / samples,
            "samples": samples,
            "ece": sum(abs(right - confidence) for _, right, confidence in rows) / samples,
            "calibration_bins": [_bin(at, self.bins, *row) for at, row in enumerate(rows)],
            "per_class_accuracy": [
                confusion[at][at] / count if count else None for at, count in enumerate(self._of_class.tolist())
            ],
            "confusion": confusion,
        }


def _bin(at: int, bins: int, count: float, hits: float, confidence: float) -> dict[str, Any]:
    return {
        "from": at / bins,
        "to": (at + 1) / bins,
        "samples": round(count),
        "accuracy": hits / count if count else None,
        "confidence": confidence / count if count else None,
    }
