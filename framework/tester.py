"""The contract of a tester: a final shell that seeds, sets eval mode and restores, around one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from framework.loss import Loss


class Tester(ABC):
    """Evaluates a trained network; a new one implements `run`."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    @final
    def evaluate(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss, *, seed: int = 0
    ) -> dict[str, Any]:
        """Results as JSON-able values. The model, its mode and the random state are afterwards as before."""
        modes = {module: module.training for module in model.modules()}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            try:
                model.eval()
                return self.run(model, batches, loss)
            finally:
                for module, training in modes.items():
                    module.training = training

    @abstractmethod
    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """Evaluate; `model` is in eval mode and on the device of the batches."""
