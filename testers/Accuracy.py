from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from secateur.framework.training.loss import Loss
from secateur.framework.training.tester import Tester
from secateur.utils.calibration import Tally
from secateur.utils.errors import RunError

LINES = ("accuracy", "top5", "loss", "samples", "ece")


class Accuracy(Tester):
    """Accuracy, per class and as confusion matrix, top-5 accuracy, loss and calibration, over all samples.

    Outputs that are no numbers are wrong.
    """

    @torch.inference_mode()
    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """`top5` is a share of the `samples`, `loss` the mean over them; for the others see
        `secateur.utils.calibration.Tally`."""
        top = total = 0.0
        tally = Tally()
        for inputs, targets in batches:
            outputs = model(inputs)
            best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
            numbers = ~outputs.isnan().any(dim=1)
            top += int(((best == targets.unsqueeze(1)).any(dim=1) & numbers).sum())
            total += float(loss(outputs, targets)) * len(inputs)
            tally.add(outputs, targets)
        found = tally.results()
        if not found:
            raise RunError("there is nothing to test: no batch")
        samples = found["samples"]
        return {"accuracy": found.pop("accuracy"), "top5": top / samples, "loss": total / samples, **found}

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """The numbers, and the accuracy of every class; the matrix and the bins are in report.json."""
        lines: list[str | Table] = [f"  {key}: {results[key]}" for key in LINES]
        names = self.context.class_names
        for label, share in enumerate(results["per_class_accuracy"]):
            name = names[label] if names is not None else f"class {label}"
            lines.append(f"    {name}: {'no sample' if share is None else f'{share:.4f}'}")
        return lines
