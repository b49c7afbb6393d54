"""Scores of the batch that was just trained on, and their running average over the batches before a pruning."""

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
    """How many of the last batches before a pruning are averaged; `alpha` is the newest one's weight."""

    batches: int = 20
    alpha: float = 0.8

    def __post_init__(self) -> None:
        if self.batches < 1 or not 0 < self.alpha <= 1:
            raise UsageError(
                f"tracking: batches {self.batches} and alpha {self.alpha}: at least 1, and a weight in (0, 1]"
            )


class RunningScores:
    """s := alpha * new + (1 - alpha) * s from s = 0, over 1 - (1 - alpha)^t where it is read.

    So the estimate after t batches is a mean with weights that add up to 1, however few they are. Lubana and Dick,
    2020, arXiv:2009.11839, whose s is not corrected.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Take in the scores of one more batch."""
        if self._weight == 0 or self.alpha == 1:
            self._sums = {name: self.alpha * score for name, score in scores.items()}
        else:
            self._sums = {name: self.alpha * scores[name] + (1 - self.alpha) * s for name, s in self._sums.items()}
        self._weight = self.alpha + (1 - self.alpha) * self._weight

    def value(self) -> dict[str, Tensor]:
        """The average; RunError where nothing was taken in."""
        if self._weight == 0:
            raise RunError("no batch was scored before this pruning: the trainer must set `batch` in each step")
        return {name: total / self._weight for name, total in self._sums.items()}


@contextmanager
def own_randomness(criterion: Criterion, seed: int) -> Iterator[None]:
    """Inside, torch's random numbers follow from the seed and the pruning step; training's go on afterwards."""
    with random_numbers_as_before():
        torch.manual_seed(seed * 1_000_003 + criterion.step)
        yield


def batch_scores(step: PruningStep, trainer: Trainer, seed: int) -> dict[str, Tensor]:
    """The criterion's scores on the training batch of now, with the weights of now, float32; pure.

    A pass of its own in eval mode, without penalties, noise or clipping; its cost counts as that of a scoring. A
    criterion without data gets none and costs nothing. Their values are not checked here, which would wait for
    the device: `check_scores` is for what is ranked.
    """
    criterion = step.criterion
    batches = []
    if criterion.data.kind != "none":
        if trainer.batch is None:
            who = type(trainer).__name__
            raise RunError(f"{who} does not say which batch it trains on: it must set `batch` in each step")
        batches = [trainer.batch]
    trainer.count_macs(round(criterion.cost(sum(len(inputs) for inputs, _ in batches))))
    groups = None if criterion.granularity == "weight" else free_groups(step.groups)
    with own_randomness(criterion, seed), held_to_contract(criterion, "score", step.model):
        scores = criterion.score(step.model, batches, trainer.loss, groups)
        return as_scores(scores, step.model, step.groups, criterion)
