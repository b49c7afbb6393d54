"""Scores of the current training batch, and their running average over the batches before a pruning step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.framework.network.preserve import random_numbers_as_before
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Criterion, as_scores
from secateur.framework.pruning.steps.step import PruningStep
from secateur.utils.errors import RunError, UsageError

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


@dataclass(frozen=True)
class Tracking:
    """Options of the running average of scores.

    Attributes:
        batches: Number of training batches before a pruning step that are averaged, at least 1.
        alpha: Weight of the newest batch, in (0, 1].
    """

    batches: int = 20
    alpha: float = 0.8

    def __post_init__(self) -> None:
        if self.batches < 1 or not 0 < self.alpha <= 1:
            raise UsageError(
                f"tracking: batches must be at least 1 and alpha in (0, 1], got {self.batches} and {self.alpha}"
            )


class RunningScores:
    """Exponential moving average s := alpha * new + (1 - alpha) * s from s = 0, divided by 1 - (1 - alpha)^t.

    The division corrects the bias towards zero, so that the weights of the t batches sum to 1. Following Lubana
    and Dick, 2020, arXiv:2009.11839, who do not correct s.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Add the scores of a batch."""
        if self._weight == 0 or self.alpha == 1:
            self._sums = {name: self.alpha * score for name, score in scores.items()}
        else:
            self._sums = {name: self.alpha * scores[name] + (1 - self.alpha) * s for name, s in self._sums.items()}
        self._weight = self.alpha + (1 - self.alpha) * self._weight

    def value(self) -> dict[str, Tensor]:
        """Return the average; raise RunError if no batch was added."""
        if self._weight == 0:
            raise RunError(
                "no batch was scored before this pruning step: the trainer must set `batch` in each step"
            )
        return {name: total / self._weight for name, total in self._sums.items()}


@contextmanager
def own_randomness(criterion: Criterion, seed: int) -> Iterator[None]:
    """Context manager that seeds torch from the seed and the pruning step, and restores the state of training."""
    with random_numbers_as_before():
        torch.manual_seed(seed * 1_000_003 + criterion.step)
        yield


def batch_scores(step: PruningStep, trainer: Trainer, seed: int) -> dict[str, Tensor]:
    """Return the criterion's scores on the current training batch with the current weights, as float32.

    This is a separate pass in eval mode, without penalties, noise or clipping, and is counted as the cost of a
    scoring. A criterion without data receives no batch. The values are not checked, to avoid a device
    synchronisation: `check_scores` is applied to the averaged scores. The model is left unchanged.
    """
    criterion = step.criterion
    batches = []
    if criterion.data.kind != "none":
        if trainer.batch is None:
            who = type(trainer).__name__
            raise RunError(f"{who} has no current batch: it must set `batch` in each step")
        batches = [trainer.batch]
    trainer.count_macs(round(criterion.cost(sum(len(inputs) for inputs, _ in batches))))
    groups = None if criterion.granularity == "weight" else free_groups(step.groups)
    with own_randomness(criterion, seed), held_to_contract(criterion, "score", step.model):
        scores = criterion.score(step.model, batches, trainer.loss, groups)
        return as_scores(scores, step.model, step.groups, criterion)
