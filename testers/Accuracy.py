from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from framework.calibration import Tally, guesses
from framework.loss import Loss
from framework.tester import Tester
from utils.errors import RunError

LINES = ("accuracy", "top5", "loss", "samples", "ece")


class Accuracy(Tester):
    """Accuracy, per class and as confusion matrix, top-5 accuracy, loss and calibration, over all samples.

    Outputs that are no numbers are wrong.
    """

    @torch.inference_mode()
    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """`accuracy` and `top5` are shares of the `samples`, `loss` is the mean over them; for `ece`,
        `calibration_bins`, `per_class_accuracy` and `confusion` see `framework.calibration.Tally`."""
        hits = top = total = 0.0
        samples = 0
        tally = Tally()
        for inputs, targets in batches:
            outputs = model(inputs)
            guessed = guesses(outputs)
            best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
            hits += int((guessed == targets).sum())
            top += int(((best == targets.unsqueeze(1)).any(dim=1) & (guessed >= 0)).sum())
            total += float(loss(outputs, targets)) * len(inputs)
            samples += len(inputs)
            tally.add(outputs, targets)
        if not samples:
            raise RunError("there is nothing to test: no batch")
        return {
            "accuracy": hits / samples,
            "top5": top / samples,
            "loss": total / samples,
            "samples": samples,
            **tally.results(),
        }

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """The numbers, and the accuracy of every class; the matrix and the bins are in report.json."""
        lines: list[str | Table] = [f"  {key}: {results[key]}" for key in LINES]
        names = self.context.class_names
        for label, share in enumerate(results["per_class_accuracy"]):
            name = names[label] if names is not None else f"class {label}"
            lines.append(f"    {name}: {'no sample' if share is None else f'{share:.4f}'}")
        return lines
