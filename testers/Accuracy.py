from collections.abc import Iterable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from secateur import Loss, RunError, Tester
from secateur.utils.classification import Tally

LINES = ("accuracy", "top5", "loss", "samples", "ece")


class Accuracy(Tester):
    """Accuracy, in total and per class, confusion matrix, top-5 accuracy, loss and calibration, over all samples.

    Samples with NaN outputs count as wrong.
    """

    @torch.inference_mode()
    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """Return `top5` (share of the `samples`), `loss` (mean over them) and the results of `Tally`."""
        top = total = 0.0
        tally = Tally()
        for inputs, targets in batches:
            outputs = model(inputs)
            best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
            numbers = ~outputs.isnan().any(dim=1)
            top += int(((best == targets.unsqueeze(1)).any(dim=1) & numbers).sum())
            total += float(loss(outputs, targets)) * len(inputs)
            tally.add(outputs, targets)
        counted = tally.results()
        if not counted:
            raise RunError("no sample to test: there is no batch")
        samples = counted["samples"]
        return {"accuracy": counted.pop("accuracy"), "top5": top / samples, "loss": total / samples, **counted}

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """Return the numbers and the accuracy of every class; report.json also has the matrix and the bins."""
        lines: list[str | Table] = [f"  {key}: {results[key]}" for key in LINES]
        names = self.context.class_names
        for label, share in enumerate(results["per_class_accuracy"]):
            name = names[label] if names is not None else f"class {label}"
            lines.append(f"    {name}: {'no sample' if share is None else f'{share:.4f}'}")
        return lines
