"""The listener that prunes: it runs criterion, selection and mask or cut when the schedule says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from secateur.framework.network.masks import Masks
from secateur.framework.network.size import count_macs
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion
from secateur.framework.pruning.selection.select import Keep
from secateur.framework.pruning.steps.batch_scores import RunningScores, Tracking, batch_scores, own_randomness
from secateur.framework.pruning.steps.step import PruningStep, nothing_below
from secateur.framework.schedules.base import BEFORE_TRAINING
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class Pruner:
    """Prunes the trainer's network at the moments of `plan` (moment -> targets, see `schedule`)."""

    def __init__(
        self,
        criterion: Criterion,
        plan: Mapping[int, Sequence[float]],
        *,
        seed: int = 0,
        scope: str | None = None,
        protect: Sequence[str] = (),
        outer_layers: bool = True,
        masking: bool = True,
        preserve_moment: bool = True,
        tracking: Tracking | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Without `masking` pruned weights are zero once and may grow again, without `preserve_moment` the
        optimizer's state starts anew after each moment of the plan. With `tracking` what is scored are the last
        training batches before it. `options` are further ones of `PruningStep`: budget, min_channels, ..."""
        self.criterion, self.plan, self.seed = criterion, plan, seed
        self.scope, self.protect, self.outer_layers, self.masking = scope, protect, outer_layers, masking
        self.preserve_moment, self.tracking = preserve_moment, tracking
        self.options = dict(options or {})
        #: every step so far; masks and scores only of the last one
        self.events: list[PruneEvent] = []
        self._step: PruningStep | None = None
        self._masks: Masks | None = None
        self._running = RunningScores(tracking.alpha) if tracking is not None else None
        #: steps before this epoch
        self._first_step = 0

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Trace the network; UsageError if there is nothing that this criterion could prune."""
        if self.plan:
            self._step = PruningStep(
                model,
                self.criterion,
                example_input,
                scope=self.scope,
                protect=self.protect,
                outer_layers=self.outer_layers,
                **self.options,
            )
            self._step.check_reachable(self.plan[max(self.plan)][-1])

    @property
    def groups(self) -> Groups:
        """The channel groups as they are now; none before `prepare`."""
        return self._step.groups if self._step is not None else {}

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Hold the masks the network came with, then prune if it is to be done before training."""
        self._masks = Masks(trainer.model)
        self._masks.attach(unwrapped(trainer.optimizer))
        if self._step is None:
            self.prepare(trainer.model, trainer.example_input)
        if self._step is not None:
            self._step.optimizer, self._step.companions = trainer.optimizer, trainer.companions
        self.criterion.seed = self.seed
        with held_to_contract(self.criterion, "start", trainer.model):
            self.criterion.start(trainer.model)
        self._prune(trainer, BEFORE_TRAINING)

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """The epoch's phase, for each row of the metrics."""
        self._first_step = trainer.progress.step
        trainer.progress.phase = self.phase(trainer)

    def phase(self, trainer: Trainer) -> str:
        """ "warmup" before the epoch whose end prunes first, "pruning" to the one whose end prunes last, "final".

        Without any pruning all is "final", but for a trainer whose network goes on shrinking: "pruning".
        """
        if not self.plan:
            return "final" if trainer.keeps_best else "pruning"
        return phase_of(trainer.epoch, min(self.plan), max(self.plan))

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """Clipping must not see the gradients of masked weights."""
        if self._masks is not None:
            self._masks.apply_to_gradients()

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Criterions may track their scores in training, and the run may for them."""
        with held_to_contract(self.criterion, "observe", trainer.model):
            self.criterion.observe(trainer.model, loss)
        if self._running is not None and self._tracks_now(trainer):
            assert self._step is not None
            self._running.add(batch_scores(self._step, trainer, self.seed))

    def _tracks_now(self, trainer: Trainer) -> bool:
        return self.tracking is not None and self._batches_left(trainer) < self.tracking.batches

    def _batches_left(self, trainer: Trainer) -> float:
        """Until the next pruning, this one not counted; infinite where none comes."""
        due = [moment for moment in self.plan if moment >= trainer.epoch]
        length = len(trainer.loaders.train)
        ahead = (min(due) - trainer.epoch + 1) * length if due else math.inf
        return ahead - (trainer.progress.step - self._first_step)

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """Prune if this epoch's end is in the plan."""
        self._prune(trainer, trainer.epoch)

    @hookimpl
    def training_ended(self, trainer: Trainer) -> None:
        """A run that was stopped early may not have come to its last pruning."""
        trainer.progress.phase = "final"
        missed = [targets[-1] for moment, targets in sorted(self.plan.items()) if moment > trainer.epoch]
        if missed:
            asked = f"sparsity {missed[-1]:.4f} was never asked for"
            trainer.warn(f"{type(self.criterion).__name__}: training ended before the last pruning: {asked}")
        elif (
            self.events
            and any(max(targets) > 0 for targets in self.plan.values())
            and self.criterion.threshold is not None
            and not any(event.removed for event in self.events)
        ):
            trainer.warn(nothing_below(self.criterion))

    def _prune(self, trainer: Trainer, moment: int) -> None:
        targets = self.plan.get(moment, ())
        if not targets:
            return
        if self._running is not None:  # the same scores all the way down: one step comes to the same
            targets = targets[-1:]
        for number, target in enumerate(trainer.track(targets, "prune", len(targets)), 1):
            self._prune_to(trainer, target, strict=number == len(targets) and moment == max(self.plan))
        trainer.hooks.moment_ended(trainer=trainer)
        if not self.masking:
            Masks(trainer.model).drop()
        if not self.preserve_moment:
            unwrapped(trainer.optimizer).state.clear()
        if self.criterion.threshold is None:
            self._warn_if_off(trainer, targets[-1], self.events[-1].reached)

    def _warn_if_few(self, trainer: Trainer, samples: int) -> None:
        wanted, classes = self.criterion.data.per_class, trainer.loaders.num_classes
        if wanted is not None and samples < wanted * classes and not self.events:
            who, found = type(self.criterion).__name__, samples // classes
            trainer.warn(f"{who} scores with {wanted} images of each class, the smallest class has {found}")

    def _warn_if_off(self, trainer: Trainer, asked: float, reached: float) -> None:
        assert self._step is not None
        if abs(reached - asked) > self._step.tolerance:
            share = self._step.keep_share
            why = "what is left is protected or the last of its layer"
            why = f"{why}, of which the share {share:g} stays (keep_share)" if share else why
            why = f"{why}, or the next channels would be too many"
            why = why if reached < asked else "as much was gone already, or goes only together"
            who = type(self.criterion).__name__
            trainer.warn(f"{who}: asked for sparsity {asked:.4f}, reached {reached:.4f}: {why}")

    def _prune_to(self, trainer: Trainer, target: float, strict: bool) -> None:
        assert self._step is not None
        trainer.optimizer.zero_grad(set_to_none=True)
        scores = batches = None
        if self._running is not None and self.tracking is not None:
            scores, self._running = self._running.value(), RunningScores(self.tracking.alpha)
        else:
            batches = self._scoring_batches(trainer)
        with own_randomness(self.criterion, self.seed):
            event = self._step(target, batches or [], trainer.loss, strict, scores)
        self._tell(trainer, event)

    def _scoring_batches(self, trainer: Trainer) -> list[Batch]:
        """What the criterion wants to see, in the network's layout; its cost is counted."""
        assert self._step is not None
        data = self.criterion.data
        batches = trainer.loaders.scoring_batches(
            data.kind,
            batches=data.batches,
            samples=data.samples,
            per_class=data.per_class,
            batch_size=trainer.loaders.train.batch_size,
            seed=self.seed,
            step=self.criterion.step,
        )
        self._warn_if_few(trainer, sum(len(targets) for _, targets in batches))
        layout = trainer.memory_format
        batches = [(inputs.contiguous(memory_format=layout), targets) for inputs, targets in batches]
        passes = self.criterion.cost(sum(len(inputs) for inputs, _ in batches))
        trainer.count_macs(round(passes * (1 + len(self._step.readers) if batches else 1)))
        return batches

    def _tell(self, trainer: Trainer, event: PruneEvent) -> None:
        """Count the smaller network, note the step and call the listeners.

        Fewer input channels may make a convolution one that must not be trained in the present memory format.
        """
        trainer.use_memory_format(trainer.memory_format)
        trainer.macs = count_macs(trainer.model, trainer.example_input)[0]
        if self.events:  # of those before only the numbers are kept: scores are as large as the network
            self.events[-1] = replace(self.events[-1], keep=Keep({}), scores={})
        self.events.append(event)
        trainer.hooks.pruned(trainer=trainer, event=event)


def phase_of(epoch: int, first: int, last: int) -> str:
    """The phase of an epoch in a run that prunes at the end of epochs `first` to `last`."""
    if epoch > last:
        return "final"
    return "pruning" if epoch >= first else "warmup"
