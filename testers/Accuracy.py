from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from framework.loss import Loss
from framework.tester import Tester
from utils.errors import RunError


class Accuracy(Tester):
    """Accuracy, top-5 accuracy and loss over all samples."""

    @torch.inference_mode()
    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """`accuracy` and `top5` are shares of the `samples`, `loss` is the mean over them."""
        hits = top = total = 0.0
        samples = 0
        for inputs, targets in batches:
            outputs = model(inputs)
            best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
            hits += int((outputs.argmax(dim=1) == targets).sum())
            top += int((best == targets.unsqueeze(1)).any(dim=1).sum())
            total += float(loss(outputs, targets)) * len(inputs)
            samples += len(inputs)
        if not samples:
            raise RunError("there is nothing to test: no batch")
        return {
            "accuracy": hits / samples,
            "top5": top / samples,
            "loss": total / samples,
            "samples": samples,
        }
