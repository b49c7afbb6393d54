"""What a classifier gets right, class by class, and how far its confidence can be trusted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15


def guesses(outputs: Tensor) -> Tensor:
    """The class that each row of outputs (B, classes) stands for, int64 (B,); -1 where one is no number."""
    return torch.where(outputs.isnan().any(dim=1), -1, outputs.argmax(dim=1))


class Tally:
    """Counts over batches, on their device: confusion of classes, and confidence by bins.

    Bin b of `bins` equal ones holds the samples whose confidence, the largest softmax probability, lies in
    (b / bins, (b + 1) / bins].
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self._confusion: Tensor | None = None
        self._of_class: Tensor | None = None
        self._hits: Tensor | None = None
        self._counts: Tensor | None = None
        self._confidence: Tensor | None = None

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: outputs (B, classes) logits, targets (B,) int64. Nothing is read from the device.

        Outputs that are no numbers are wrong, with no confidence.
        """
        classes = outputs.shape[1]
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64  # which has no float64
        confidence = outputs.to(wide).softmax(dim=1).amax(dim=1).nan_to_num(0.0)
        if self._confusion is None:
            zeros = torch.zeros(self.bins, dtype=wide, device=outputs.device)
            self._hits, self._counts, self._confidence = zeros, zeros.clone(), zeros.clone()
            self._confusion = torch.zeros(classes * classes, dtype=wide, device=outputs.device)
            self._of_class = torch.zeros(classes, dtype=wide, device=outputs.device)
        assert self._hits is not None and self._counts is not None and self._confidence is not None
        assert self._of_class is not None
        guessed = guesses(outputs)
        ones = torch.ones_like(confidence)
        self._of_class.index_add_(0, targets, ones)
        self._confusion.index_add_(0, targets * classes + guessed.clamp(min=0), (guessed >= 0).to(wide))
        at = ((confidence * self.bins).ceil() - 1).clamp(0, self.bins - 1).long()
        self._counts.index_add_(0, at, ones)
        self._hits.index_add_(0, at, (guessed == targets).to(wide))
        self._confidence.index_add_(0, at, confidence)

    def results(self) -> dict[str, Any]:
        """`ece`, the mean over all samples of |accuracy - confidence| of their bin (arXiv:1706.04599), the bins
        themselves, `per_class_accuracy` (None for a class without samples) and `confusion`, rows by true class, of
        the outputs that are numbers."""
        if self._confusion is None:
            return {}
        assert self._hits is not None and self._counts is not None and self._confidence is not None
        assert self._of_class is not None
        size = round(len(self._confusion) ** 0.5)
        confusion = self._confusion.long().view(size, size).tolist()
        rows = list(zip(self._counts.tolist(), self._hits.tolist(), self._confidence.tolist(), strict=True))
        total = sum(count for count, _, _ in rows)
        return {
            "ece": sum(abs(hits - confidence) for _, hits, confidence in rows) / total,
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
