"""The listener that prunes on schedule: it runs the criterion, the selection, and masks or cuts."""

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
    """Prune the trainer's network at the moments of a plan.

    Args:
        criterion: The criterion.
        plan: Moment -> rising target sparsities, see `Schedule.plan`.
        seed: Seed of the criterion and of the scoring batches.
        scope: Scope of the ranking; None (default) for that of the criterion.
        protect: Names of layers that are not pruned.
        outer_layers: Whether a weight criterion prunes the first and the last layer.
        masking: Hold pruned weights at zero. Without it they are set to zero once and may grow again.
        preserve_moment: Keep the optimizer's state. Without it the state is cleared after each moment of the plan.
        tracking: Average the scores of the last training batches instead of scoring at the moment itself.
        options: Further arguments of `PruningStep`, such as budget and min_channels.
    """

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
        self.criterion, self.plan, self.seed = criterion, plan, seed
        self.scope, self.protect, self.outer_layers, self.masking = scope, protect, outer_layers, masking
        self.preserve_moment, self.tracking = preserve_moment, tracking
        self.options = dict(options or {})
        #: all steps so far; masks and scores only of the last one
        self.events: list[PruneEvent] = []
        self._step: PruningStep | None = None
        self._masks: Masks | None = None
        self._running = RunningScores(tracking.alpha) if tracking is not None else None
        #: number of training steps before this epoch
        self._first_step = 0

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Trace the network; raise UsageError if the criterion cannot prune anything."""
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
        """The present channel groups; empty before `prepare`."""
        return self._step.groups if self._step is not None else {}

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Attach the network's present masks, then prune if it is due before training."""
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
        """Set the phase of the epoch, a column of the metrics."""
        self._first_step = trainer.progress.step
        trainer.progress.phase = self.phase(trainer)

    def phase(self, trainer: Trainer) -> str:
        """Return the phase of the epoch: "warmup" before the first one that ends with pruning, "pruning", or
        "final".

        Without any pruning it is "final", or "pruning" for a trainer that shrinks the network itself.
        """
        if not self.plan:
            return "final" if trainer.keeps_best else "pruning"
        return phase_of(trainer.epoch, min(self.plan), max(self.plan))

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """Zero the gradients of masked weights before gradient clipping."""
        if self._masks is not None:
            self._masks.apply_to_gradients()

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Call the criterion's `observe`, and add the batch to the running average of the scores."""
        with held_to_contract(self.criterion, "observe", trainer.model):
            self.criterion.observe(trainer.model, loss)
        if self._running is not None and self._tracks_now(trainer):
            assert self._step is not None
            self._running.add(batch_scores(self._step, trainer, self.seed))

    def _tracks_now(self, trainer: Trainer) -> bool:
        return self.tracking is not None and self._batches_left(trainer) < self.tracking.batches

    def _batches_left(self, trainer: Trainer) -> float:
        """Return the number of batches after this one up to the next pruning; infinite if there is none."""
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
        """Warn if training ended before the last pruning, or if no score was below the threshold."""
        trainer.progress.phase = "final"
        missed = [targets[-1] for moment, targets in sorted(self.plan.items()) if moment > trainer.epoch]
        if missed:
            asked = f"target sparsity {missed[-1]:.4f} was not applied"
            trainer.warn(f"{self.criterion.name}: training ended before the last pruning: {asked}")
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
        if self._running is not None:  # all targets use the same scores: one step is equivalent
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
            who, present = self.criterion.name, samples // classes
            trainer.warn(f"{who} scores with {wanted} images of each class, the smallest class has {present}")

    def _warn_if_off(self, trainer: Trainer, asked: float, reached: float) -> None:
        assert self._step is not None
        if abs(reached - asked) > self._step.tolerance:
            share = self._step.keep_share
            why = "the remaining channels are protected or the last of their layer"
            why = f"{why}, of which the share {share:g} is kept (keep_share)" if share else why
            why = f"{why}, or the next channels would exceed the target"
            if reached >= asked:
                why = "as much was already pruned, or the channels can only be cut together"
            who = self.criterion.name
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
        """Return the batches for the criterion in the network's memory format; count the cost of scoring."""
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
        """Update the multiply-adds, record the step and call the listeners.

        With fewer input channels a convolution may no longer be trainable in the present memory format.
        """
        trainer.use_memory_format(trainer.memory_format)
        trainer.macs = count_macs(trainer.model, trainer.example_input)[0]
        if self.events:  # drop the tensors of earlier events, which are as large as the network
            self.events[-1] = replace(self.events[-1], keep=Keep({}), scores={})
        self.events.append(event)
        trainer.hooks.pruned(trainer=trainer, event=event)


def phase_of(epoch: int, first: int, last: int) -> str:
    """Return the phase of an epoch in a run that prunes at the end of epochs `first` to `last`."""
    if epoch > last:
        return "final"
    return "pruning" if epoch >= first else "warmup"
