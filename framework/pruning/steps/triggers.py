"""When a run prunes: the base class of triggers, and the one that follows a plan of moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from secateur.framework.pruning.steps.averages import RunningScores, Tracking
from secateur.framework.pruning.steps.pruned_network import PrunedNetwork
from secateur.framework.pruning.steps.step import nothing_below
from secateur.framework.schedules.base import BEFORE_TRAINING

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class Trigger:
    """Base class of triggers, which prunes nothing. `Pruner` calls the methods of its trigger in its hooks."""

    def phase(self, trainer: Trainer) -> str:
        """Return the phase of the epoch, a column of the metrics: "warmup", "pruning" or "final".

        Without any pruning it is "final", or "pruning" for a trainer that shrinks the network itself.
        """
        return "final" if trainer.keeps_best else "pruning"

    def run_started(self, trainer: Trainer) -> None:
        """Prune if it is due before training."""

    def epoch_started(self, trainer: Trainer) -> None:
        """Note where the epoch begins."""

    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Score the batch, or prune if it is due after it."""

    def epoch_ended(self, trainer: Trainer) -> None:
        """Prune if it is due after the epoch."""

    def training_ended(self, trainer: Trainer) -> None:
        """Warn of missed targets."""


class AtMoments(Trigger):
    """Prunes before training and at the ends of epochs, at the moments of a plan.

    Args:
        network: The network.
        plan: Moment -> rising target sparsities, see `Schedule.plan`.
        tracking: Average the scores of the last training batches instead of scoring at the moment itself.
    """

    def __init__(
        self, network: PrunedNetwork, plan: Mapping[int, Sequence[float]], tracking: Tracking | None = None
    ) -> None:
        self.network, self._plan = network, plan
        self._tracked = 0 if tracking is None else tracking.batches
        self._running = None if tracking is None else RunningScores(tracking.alpha)
        #: number of training steps before this epoch
        self._first_step = 0

    def phase(self, trainer: Trainer) -> str:
        """Return "warmup" before the first epoch that ends with pruning, "final" after the last one."""
        return phase_of(trainer.epoch, min(self._plan), max(self._plan))

    def run_started(self, trainer: Trainer) -> None:
        self._prune(trainer, BEFORE_TRAINING)

    def epoch_started(self, trainer: Trainer) -> None:
        self._first_step = trainer.progress.step

    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Add the batch to the running average of the scores, if pruning is near."""
        if self._running is not None and self._batches_left(trainer) < self._tracked:
            self._running.add(self.network.batch_scores(trainer))

    def epoch_ended(self, trainer: Trainer) -> None:
        self._prune(trainer, trainer.epoch)

    def training_ended(self, trainer: Trainer) -> None:
        """Warn if training ended before the last pruning, or if no score was below the threshold."""
        criterion, events = self.network.step.criterion, self.network.events
        missed = [targets[-1] for moment, targets in sorted(self._plan.items()) if moment > trainer.epoch]
        if missed:
            asked = f"target sparsity {missed[-1]:.4f} was not applied"
            trainer.warn(f"{self.network.name}: training ended before the last pruning: {asked}")
        elif max(map(max, self._plan.values())) > 0 and (
            warning := nothing_below(criterion, sum(event.removed for event in events))
        ):
            trainer.warn(warning)

    def _batches_left(self, trainer: Trainer) -> float:
        """Return the number of batches after this one up to the next pruning; infinite if there is none."""
        due = [moment for moment in self._plan if moment >= trainer.epoch]
        length = len(trainer.loaders.train)
        ahead = (min(due) - trainer.epoch + 1) * length if due else math.inf
        return ahead - (trainer.progress.step - self._first_step)

    def _prune(self, trainer: Trainer, moment: int) -> None:
        network, targets = self.network, self._plan.get(moment, ())
        if not targets:
            return
        if self._running is not None:  # all targets use the same scores: one step is equivalent
            targets = targets[-1:]
        for number, target in enumerate(trainer.track(targets, "prune", len(targets)), 1):
            strict = number == len(targets) and moment == max(self._plan)
            if self._running is None:
                event = network.prune(trainer, target, network.scoring_batches(trainer), strict)
            else:
                event = network.prune(trainer, target, strict=strict, scores=self._running.value())
                self._running = RunningScores(self._running.alpha)
            network.report(trainer, event)
        trainer.hooks.moment_ended(trainer=trainer)
        network.release(trainer)
        if network.step.criterion.threshold is None:
            network.warn_if_off(trainer, targets[-1])


def phase_of(epoch: int, first: int, last: int) -> str:
    """Return the phase of an epoch in a run that prunes at the end of epochs `first` to `last`."""
    if epoch > last:
        return "final"
    return "pruning" if epoch >= first else "warmup"
