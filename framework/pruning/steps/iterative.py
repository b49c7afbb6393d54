"""The trigger that prunes every few batches, with scores averaged over the batches in between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.framework.network.layers import prunable_weights
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.targets import Request, WeightTarget, check_unused, target_class
from secateur.framework.pruning.steps.averages import Averages, normed
from secateur.framework.pruning.steps.pruned_network import PrunedNetwork
from secateur.framework.pruning.steps.step import nothing_below
from secateur.framework.pruning.steps.triggers import Trigger
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.training.events import PruneEvent
from secateur.utils.errors import UsageError

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class EveryNBatches(Trigger):
    """Scores every training batch and prunes every `frequency` batches, see `Iterative`.

    The scores are computed after the optimizer's step by a separate pass in eval mode over the same batch: an
    iteration costs about twice as much until the last step, which is included in the cumulative multiply-adds. A
    criterion without data is scored once per step, at no cost.

    Args:
        network: The network.
        schedule: The schedule.
        limit: Target sparsity; it is ignored if the schedule prunes numbers of units.
    """

    def __init__(self, network: PrunedNetwork, schedule: Iterative, limit: float) -> None:
        self.network, self._plan, self._limit = network, schedule, limit
        criterion = network.step.criterion
        self._averages = Averages(0.0 if criterion.exact else schedule.momentum)
        self._scores_batches = criterion.data.kind != "none"
        self._frequency, self._steps = 1, schedule.maximum
        #: sum of the losses since the last check, batches since then and in total, steps, and pruned units
        self._loss: Tensor | float = 0.0
        self._waited = self._seen = self._done = self._gone = 0
        self._over = self._frozen = self._told = False
        self._only = self._fixed_layer()

    def _fixed_layer(self) -> str | None:
        """Return the name of the only group to prune, if there is one; raise UsageError if it does not exist."""
        names, wanted = list(free_groups(self.network.step.groups)), self._plan.fixed_layer
        if wanted is not None and wanted >= len(names):
            model, shown = type(self.network.step.model).__name__, ", ".join(names)
            raise UsageError(
                f"fixed_layer {wanted}: {model} has {len(names)} layers to prune, 0 to {len(names) - 1} ({shown})",
                argument="fixed_layer",
            )
        return None if wanted is None else names[wanted]

    def run_started(self, trainer: Trainer) -> None:
        """Plan the steps of the run."""
        self.fit(len(trainer.loaders.train) * trainer.settings.epochs)

    def fit(self, batches: int) -> None:
        """Plan the steps of a run of `batches` batches, see `Iterative.steps`."""
        self._frequency, self._steps = self._plan.steps(batches)

    def phase(self, trainer: Trainer) -> str:
        """Return "warmup" if no step of the epoch prunes yet, "final" after the last step, otherwise "pruning"."""
        if self._over:
            return "final"
        ahead = max(1, self._plan.start) - self._done
        first = self._seen + self._frequency - self._waited + (ahead - 1) * self._frequency
        last = trainer.progress.step + len(trainer.loaders.train)
        return "warmup" if ahead > 0 and first > last else "pruning"

    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Score the batch, and run a step after every `frequency` batches."""
        if self._over:
            return
        self._loss = self._loss + loss
        self._waited, self._seen = self._waited + 1, self._seen + 1
        if self._scores_batches and not self._frozen:
            self._averages.add(self.network.batch_scores(trainer))
        if self._seen % self._frequency == 0:
            self._check(trainer)

    def training_ended(self, trainer: Trainer) -> None:
        """Warn if steps are missing, or if no score was below the threshold."""
        step = self.network.step
        if not self._over:
            wanted = "more" if self._steps is None else str(self._steps)
            trainer.warn(
                f"{self.network.name}: training ended after {self._done} of {wanted} steps of {self._frequency} "
                f"batches, {self._gone} {step.target.units} were pruned"
            )
        elif self._limit > 0 and (warning := nothing_below(step.criterion, self._gone)):
            trainer.warn(warning)

    def _check(self, trainer: Trainer) -> None:
        """Run a step unless the mean loss is above `loss_limit`."""
        mean, limit = self._loss / self._waited, self._plan.loss_limit
        self._loss, self._waited = 0.0, 0
        if limit is not None and float(mean) > limit:
            return
        self._done += 1
        prunes = self._done >= self._plan.start
        if not self._frozen:
            if not self._scores_batches:
                self._averages.add(self.network.batch_scores(trainer))
            self._averages.step(keep_adding=self._plan.fixed_criteria)
            self._frozen = self._plan.fixed_criteria and prunes
            self._averages.value = self.network.step.check(self._averages.value)
        if prunes:
            self._prune(trainer)
        self._over = self._over or self._done == self._steps

    def _prune(self, trainer: Trainer) -> None:
        """Prune the units with the lowest averaged scores."""
        step, scores = self.network.step, self._averages.value
        if self._plan.l2_per_layer:
            scores = normed(scores)
        if self._only is not None:  # scores of +inf are never pruned
            scores = {n: s if n == self._only else torch.full_like(s, torch.inf) for n, s in scores.items()}
        room = None if self._plan.most is None else self._plan.most - self._gone
        event = self.network.prune(trainer, self._request(room), scores=scores)
        if event.removed:
            self._conclude(trainer, event)
        to_limit = self._plan.per_step is not None and event.asked is not None
        self._over = to_limit or event.number is not None and event.number == room
        if event.asked is not None and (self._over or self._done == self._steps):
            self.network.warn_if_off(trainer, event.asked)
        missing = 0 if event.number is None else event.number - event.removed
        if missing >= self._plan.group_size and not self._told:
            self._told = True
            trainer.warn(
                f"{self.network.name}: in step {self._done} {missing} {step.target.units} fewer than requested "
                f"were pruned: {step.target.why_short}"
            )

    def _request(self, room: int | None) -> Request:
        """Return what the step prunes; `room` is the number of units that may still be pruned in the run."""
        numbers = [number for number in (self._plan.per_step, room) if number is not None]
        share: float | None = None
        if not self._plan.counted:
            before = max(1, self._plan.start) - 1
            share = self._limit * (1.0 if self._steps is None else (self._done - before) / (self._steps - before))
        return Request(share, min(numbers) if numbers else None)

    def _conclude(self, trainer: Trainer, event: PruneEvent) -> None:
        """Cut the averages with the network, count, and notify the listeners."""
        step = self.network.step
        self._averages.shrink(event, free_groups(step.groups).keys() | prunable_weights(step.model).keys())
        self._gone += event.removed
        self.network.release(trainer)
        self.network.report(trainer, event)


def iterative_options(
    criterion: Criterion, schedule: Iterative, options: PruneOptions, masking: bool
) -> PruneOptions:
    """Return the options of the steps of an iterative schedule.

    Raises UsageError for fields of the schedule that have no meaning for the criterion.
    """
    who, target, scope = criterion.name, target_class(criterion), options.scope or criterion.scope
    if criterion.threshold is None:
        check_unused(schedule, target.unused, f"{who}, which {target.does}")
    else:
        unused = ("group_size", "flops", "fixed_layer", "per_step", "most", "l2_per_layer")
        check_unused(schedule, unused, f"{who}, which prunes by a fixed threshold")
    if target is WeightTarget and (schedule.per_step is not None or schedule.most is not None):
        name = "most" if schedule.per_step is None else "per_step"
        if scope != "global":
            message = f"{name} prunes the lowest of all weights: {who} needs the scope global, not {scope}"
            raise UsageError(message, argument=name)
        if not masking:
            message = f"{name} cannot be combined with masking=False: regrown weights would count twice"
            raise UsageError(message, argument=name)
    return replace(options, group_size=schedule.group_size, flops=schedule.flops)
