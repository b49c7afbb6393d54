"""The listeners that prune by a schedule: at the moments of a plan, or every few batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.averages import Averages, RunningScores, normed
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.pruning.steps.step import ONLY_CHANNELS, Request, WeightStep, check_unused, step_class
from secateur.framework.schedules.base import BEFORE_TRAINING, Schedule
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.training.hooks import hookimpl
from secateur.utils.errors import UsageError

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


def pruner_for(
    criterion: Criterion,
    schedule: Schedule,
    limit: float,
    epochs: int,
    *,
    masking: bool = True,
    options: PruneOptions | None = None,
    **others: Any,
) -> Pruner:
    """Return the listener that prunes by a schedule.

    Args:
        criterion: The criterion.
        schedule: The schedule.
        limit: Target sparsity; it is ignored if an `Iterative` schedule prunes numbers of units.
        epochs: Number of epochs of the run.
        masking, options, others: See `Pruner`.

    Raises:
        UsageError: If the run is too short for the schedule, or the schedule has no meaning for the criterion.
    """
    if isinstance(schedule, Iterative):
        options = iterative_options(criterion, schedule, options or PruneOptions(), masking)
        plan = schedule.plan(0.0 if schedule.counted else limit, epochs)
        return EveryNBatches(criterion, plan, schedule=schedule, masking=masking, options=options, **others)
    plan = schedule.plan(limit, epochs)
    kind = AtMoments if plan else Pruner
    return kind(criterion, plan, schedule=schedule, masking=masking, options=options, **others)


def iterative_options(
    criterion: Criterion, schedule: Iterative, options: PruneOptions, masking: bool
) -> PruneOptions:
    """Return the options of the steps of an iterative schedule.

    Raises UsageError for fields of the schedule that have no meaning for the criterion.
    """
    who, kind, scope = criterion.name, step_class(criterion), options.scope or criterion.scope
    unused, does = kind.unused, kind.does
    if criterion.threshold is not None:
        unused, does = (*ONLY_CHANNELS, "per_step", "most", "l2_per_layer"), "prunes by a fixed threshold"
    check_unused(schedule, unused, f"{who}, which {does}")
    if kind is WeightStep and (schedule.per_step is not None or schedule.most is not None):
        name = "most" if schedule.per_step is None else "per_step"
        if scope != "global":
            message = f"{name} prunes the lowest of all weights: {who} needs the scope global, not {scope}"
            raise UsageError(message, argument=name)
        if not masking:
            message = f"{name} cannot be combined with masking=False: regrown weights would count twice"
            raise UsageError(message, argument=(name, "masking"))
    return replace(options, group_size=schedule.group_size, flops=schedule.flops)


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
        return f"{self.criterion.name}: training ended before the last pruning: {asked}"

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


class EveryNBatches(Pruner):
    """Scores every training batch and prunes every `frequency` batches, see `Iterative`.

    The scores are computed after the optimizer's step by a separate pass in eval mode over the same batch: an
    iteration costs about twice as much until the last step, which is included in the cumulative multiply-adds. A
    criterion without data is scored once per step, at no cost.
    """

    schedule: Iterative

    def __init__(
        self, criterion: Criterion, plan: Mapping[int, Sequence[float]], *, schedule: Iterative, **options: Any
    ) -> None:
        super().__init__(criterion, plan, schedule=schedule, **options)
        self._averages = Averages(0.0 if criterion.exact else schedule.momentum)
        self._scores_batches = criterion.data.kind != "none"
        self._frequency, self._steps = 1, schedule.maximum
        #: sum of the losses since the last check, number of batches and of steps
        self._loss: Tensor | float = 0.0
        self._seen = self._done = 0
        self._over = self._frozen = self._told = False
        #: name of the only group to prune, if there is one
        self._only: str | None = None

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Trace the network; raise UsageError also if there is no group `fixed_layer`."""
        super().prepare(model, example_input)
        names, wanted = list(free_groups(self.groups)), self.schedule.fixed_layer
        if wanted is None:
            return
        if wanted >= len(names):
            raise UsageError(
                f"fixed_layer {wanted}: {type(model).__name__} has {len(names)} layers to prune, 0 to "
                f"{len(names) - 1} ({', '.join(names)})",
                argument="fixed_layer",
            )
        self._only = names[wanted]

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Plan the steps of the run."""
        super().run_started(trainer)
        self.fit(len(trainer.loaders.train) * trainer.settings.epochs)

    def fit(self, batches: int) -> None:
        """Plan the steps of a run of `batches` batches, see `Iterative.steps`."""
        self._frequency, self._steps = self.schedule.steps(batches)

    def phase(self, trainer: Trainer) -> str:
        """Return "warmup" if no step of the epoch prunes yet, "final" after the last step, otherwise "pruning"."""
        if self._over:
            return "final"
        ahead = max(1, self.schedule.start) - self._done
        first = (self._seen // self._frequency + ahead) * self._frequency
        last = trainer.progress.step + len(trainer.loaders.train)
        return "warmup" if ahead > 0 and first > last else "pruning"

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Score the batch, and run a step after every `frequency` batches."""
        super().batch_ended(trainer, loss)
        if self._over:
            return
        self._loss, self._seen = self._loss + loss, self._seen + 1
        if self._scores_batches and not self._frozen:
            self._averages.add(self.batch_scores(trainer))
        if self._seen % self._frequency == 0:
            self._check(trainer)

    def _missed(self, trainer: Trainer) -> str | None:
        if self._over:
            return None
        wanted = "more" if self._steps is None else str(self._steps)
        return (
            f"{self.criterion.name}: training ended after {self._done} of {wanted} steps of {self._frequency} "
            f"batches, {self.removed} {self.step.units} were pruned"
        )

    def _check(self, trainer: Trainer) -> None:
        """Run a step unless the mean loss is above `loss_limit`."""
        mean, limit = self._loss / self._frequency, self.schedule.loss_limit
        self._loss = 0.0
        if limit is not None and float(mean) > limit:
            return
        self._done += 1
        prunes = self._done >= self.schedule.start
        if not self._frozen:
            if not self._scores_batches:
                self._averages.add(self.batch_scores(trainer))
            self._averages.step(keep_adding=self.schedule.fixed_criteria)
            self._frozen = self.schedule.fixed_criteria and prunes
            self._averages.value = self.step.check(self._averages.value)
        if prunes:
            self._prune(trainer)
        self._over = self._over or self._done == self._steps

    def _prune(self, trainer: Trainer) -> None:
        """Prune the units with the lowest averaged scores."""
        step, scores = self.step, self._averages.value
        if self.schedule.l2_per_layer:
            scores = normed(scores)
        if self._only is not None:  # scores of +inf are never pruned
            scores = {n: s if n == self._only else torch.full_like(s, torch.inf) for n, s in scores.items()}
        room = None if self.schedule.most is None else self.schedule.most - self.removed
        event = self.prune(trainer, self._request(room), scores=scores)
        if event.removed:
            left = free_groups(step.groups).keys() | prunable_weights(step.model).keys()
            self._averages.shrink(event, left)
            self.release(trainer)
            self.report(trainer, event)
        to_limit = self.schedule.per_step is not None and event.asked is not None
        self._over = to_limit or event.number is not None and event.number == room
        if event.asked is not None and (self._over or self._done == self._steps):
            self.warn_if_off(trainer, event.asked)
        missing = 0 if event.number is None else event.number - event.removed
        if missing >= self.schedule.group_size and not self._told:
            self._told = True
            trainer.warn(
                f"{self.criterion.name}: in step {self._done} {missing} {step.units} fewer than requested "
                f"were pruned: {step.why_short}"
            )

    def _request(self, room: int | None) -> Request:
        """Return what the step prunes; `room` is the number of units that may still be pruned in the run."""
        numbers = [number for number in (self.schedule.per_step, room) if number is not None]
        share: float | None = None
        if not self.schedule.counted:
            ((share,),) = self.plan.values()
            if self._steps is not None:
                before = max(1, self.schedule.start) - 1
                share *= (self._done - before) / (self._steps - before)
        return Request(share, min(numbers) if numbers else None)
