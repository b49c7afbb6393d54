"""The listener that prunes before training and at the ends of epochs, by a plan."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.framework.pruning.steps.averages import RunningScores
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.schedules.base import BEFORE_TRAINING
from secateur.framework.training.hooks import hookimpl

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class AtMoments(Pruner):
    """Prunes at the moments of a plan, which is not empty."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        tracking = self._tracking
        self._tracked = 0 if tracking is None else tracking.batches
        self._running = None if tracking is None else RunningScores(tracking.alpha)
        #: number of training steps before this epoch
        self._first_step = 0

    def phase(self, trainer: Trainer) -> str:
        """Return "warmup" before the first epoch that ends with pruning, "final" after the last one."""
        if trainer.epoch > max(self.plan):
            return "final"
        return "pruning" if trainer.epoch >= min(self.plan) else "warmup"

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Prune if it is due before training."""
        super().run_started(trainer)
        self._prune_at(trainer, BEFORE_TRAINING)

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """Note where the epoch begins."""
        super().epoch_started(trainer)
        self._first_step = trainer.progress.step

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Add the batch to the running average of the scores, if pruning is near."""
        super().batch_ended(trainer, loss)
        if self._running is not None and self._batches_left(trainer) < self._tracked:
            self._running.add(self.batch_scores(trainer))

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """Prune if it is due after the epoch."""
        self._prune_at(trainer, trainer.epoch)

    def _missed(self, trainer: Trainer) -> str | None:
        missed = [targets[-1] for moment, targets in sorted(self.plan.items()) if moment > trainer.epoch]
        if not missed:
            return None
        asked = f"target sparsity {missed[-1]:.4f} was not applied"
        return f"{self.name}: training ended before the last pruning: {asked}"

    def _batches_left(self, trainer: Trainer) -> float:
        """Return the number of batches after this one up to the next pruning; infinite if there is none."""
        due = [moment for moment in self.plan if moment >= trainer.epoch]
        length = len(trainer.loaders.train)
        ahead = (min(due) - trainer.epoch + 1) * length if due else math.inf
        return ahead - (trainer.progress.step - self._first_step)

    def _prune_at(self, trainer: Trainer, moment: int) -> None:
        targets = self.plan.get(moment, ())
        if not targets:
            return
        if self._running is not None:  # all targets use the same scores: one step is equivalent
            targets = targets[-1:]
        for number, target in enumerate(trainer.track(targets, "prune", len(targets)), 1):
            strict = number == len(targets) and moment == max(self.plan)
            if self._running is None:
                event = self.prune(trainer, target, self.scoring_batches(trainer), strict)
            else:
                event = self.prune(trainer, target, strict=strict, scores=self._running.value())
                self._running = RunningScores(self._running.alpha)
            self.report(trainer, event)
        trainer.hooks.moment_ended(trainer=trainer)
        self.release(trainer)
        if self.criterion.threshold is None:
            self.warn_if_off(trainer, targets[-1])
