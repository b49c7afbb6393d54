"""Accuracy per class and calibration of a classifier."""

from typing import Any

import torch
from torch import Tensor

from secateur.utils.classification import confusion_of, guesses

BINS = 15


class Tally:
    """Collects predicted classes and confidences over batches, on their device, and counts them at the end.

    Bin b contains the samples whose confidence, the largest softmax probability, is in (b / bins, (b + 1) / bins].

    Args:
        bins: Number of bins of equal width.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self._classes = 0
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch of logits (B, classes) and int64 targets (B,). No host synchronisation.

        Outputs with NaN count as wrong, with a confidence of 0.
        """
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64  # MPS does not support float64
        confidence = outputs.to(wide).softmax(dim=1).amax(dim=1).nan_to_num(0.0)
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
        at = ((confidence * self.bins).ceil() - 1).clamp(0, self.bins - 1).long()
        columns = (torch.bincount(at, weights, self.bins) for weights in (None, right, confidence.double()))
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        return {
            "accuracy": float(right.sum()) / samples,
            "samples": samples,
            "ece": sum(abs(hits - total) for _, hits, total in rows) / samples,
            "calibration_bins": [
                {
                    "from": number / self.bins,
                    "to": (number + 1) / self.bins,
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
