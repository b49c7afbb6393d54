"""The listener that prunes a network in training: its step, and what its subclasses use to score and to report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import random_numbers_as_before
from secateur.framework.network.size import count_macs
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, Scores, as_scores
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.ranking import Keep
from secateur.framework.pruning.steps.averages import Tracking
from secateur.framework.pruning.steps.step import PruningStep, Request, nothing_below, step_class
from secateur.framework.schedules.base import Schedule
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl
from secateur.utils.errors import RunError
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class Pruner:
    """Base class of the listeners that prune the trainer's network; on its own it never prunes.

    It holds the network's masks, and calls the criterion's `start` and `observe`. A subclass prunes in its hooks.

    Args:
        criterion: The criterion.
        plan: Moment -> rising target sparsities, see `Schedule.plan`; empty for a run that does not prune.
        schedule: The schedule of the plan, if it is known.
        seed: Seed of the criterion and of the scoring batches.
        masking: Hold pruned weights at zero. Without it they are set to zero once and may grow again.
        preserve_moment: Keep the optimizer's state. Without it the state is cleared after each pruning.
        tracking: Average the scores of the last training batches instead of scoring at the moment itself.
        options: What may be pruned, and how.

    Attributes:
        events: All steps so far; masks and scores only of the last one.
        step: The pruning step, which exists once the network is traced.
    """

    step: PruningStep

    def __init__(
        self,
        criterion: Criterion,
        plan: Mapping[int, Sequence[float]],
        *,
        schedule: Schedule | None = None,
        seed: int = 0,
        masking: bool = True,
        preserve_moment: bool = True,
        tracking: Tracking | None = None,
        options: PruneOptions | None = None,
    ) -> None:
        self.criterion, self.plan, self.schedule, self.options = criterion, plan, schedule, options
        self.events: list[PruneEvent] = []
        self._tracking, self._seed = tracking, seed
        self._masking, self._preserve_moment = masking, preserve_moment
        self._masks: Masks | None = None

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Trace the network; raise UsageError if the criterion cannot prune anything."""
        if self.plan:
            self.step = step_class(self.criterion)(model, self.criterion, example_input, self.options)
            self.step.check_reachable(self.plan[max(self.plan)][-1])

    @property
    def groups(self) -> Groups:
        """The present channel groups; empty before `prepare`."""
        return self.step.groups if hasattr(self, "step") else {}

    @property
    def removed(self) -> int:
        """Number of weights or channels that were pruned so far."""
        return sum(event.removed for event in self.events)

    def phase(self, trainer: Trainer) -> str:
        """Return the phase of the epoch, a column of the metrics: "warmup", "pruning" or "final".

        Without any pruning it is "final", or "pruning" for a trainer that shrinks the network itself.
        """
        return "final" if trainer.keeps_best else "pruning"

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Trace the network unless this was done before, attach its present masks, and start the criterion."""
        self._masks = Masks(trainer.model)
        self._masks.attach(unwrapped(trainer.optimizer))
        if self.plan:
            if not hasattr(self, "step"):
                self.prepare(trainer.model, trainer.example_input)
            self.step.optimizer, self.step.companions = trainer.optimizer, trainer.companions
        self.criterion.seed = self._seed
        with held_to_contract(self.criterion, "start", trainer.model):
            self.criterion.start(trainer.model)

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """Set the phase of the epoch."""
        trainer.progress.phase = self.phase(trainer)

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """Zero the gradients of masked weights before gradient clipping."""
        if self._masks is not None:
            self._masks.apply_to_gradients()

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Call the criterion's `observe`, if it has one of its own."""
        # the check of the contract takes 10 microseconds, also around the inherited method, which does nothing
        if type(self.criterion).observe is not Criterion.observe or "observe" in vars(self.criterion):
            with held_to_contract(self.criterion, "observe", trainer.model):
                self.criterion.observe(trainer.model, loss)

    @hookimpl
    def training_ended(self, trainer: Trainer) -> None:
        """Set the phase, and warn of missed targets or of a threshold that pruned nothing."""
        trainer.progress.phase = "final"
        if self.plan:
            warning = self._missed(trainer)
            if warning is None and max(map(max, self.plan.values())) > 0:
                warning = nothing_below(self.criterion, self.removed)
            if warning is not None:
                trainer.warn(warning)

    def _missed(self, trainer: Trainer) -> str | None:
        """Return the warning for a run that ended before its last pruning."""
        return None

    def prune(
        self,
        trainer: Trainer,
        request: float | Request,
        batches: Sequence[Batch] = (),
        strict: bool = False,
        scores: Scores | None = None,
    ) -> PruneEvent:
        """Run one pruning step; see `PruningStep`."""
        trainer.optimizer.zero_grad(set_to_none=True)
        with self._seeded():
            return self.step(request, batches, trainer.loss, strict, scores)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Draw the random numbers of the block from the seed and the number of the step."""
        with random_numbers_as_before():
            torch.manual_seed(self._seed * 1_000_003 + self.criterion.step)
            yield

    def report(self, trainer: Trainer, event: PruneEvent) -> None:
        """Update the multiply-adds, record the event and call the listeners.

        With fewer input channels a convolution may no longer be trainable in the present memory format.
        """
        trainer.use_memory_format(trainer.memory_format)
        trainer.macs = count_macs(trainer.model, trainer.example_input)[0]
        if self.events:  # drop the tensors of earlier events, which are as large as the network
            self.events[-1] = replace(self.events[-1], keep=Keep({}), scores={})
        self.events.append(event)
        trainer.hooks.pruned(trainer=trainer, event=event)

    def release(self, trainer: Trainer) -> None:
        """After pruning, drop masks that are not held, and clear the optimizer's state unless it is preserved."""
        if not self._masking:
            Masks(trainer.model).drop()
        if not self._preserve_moment:
            unwrapped(trainer.optimizer).state.clear()

    def scoring_batches(self, trainer: Trainer) -> list[Batch]:
        """Return the batches for the criterion in the network's memory format; count the cost of scoring."""
        criterion, data = self.criterion, self.criterion.data
        batches = trainer.loaders.scoring_batches(
            **vars(data), batch_size=trainer.loaders.train.batch_size, seed=self._seed, step=criterion.step
        )
        samples, classes = sum(len(targets) for _, targets in batches), trainer.loaders.num_classes
        if data.per_class is not None and samples < data.per_class * classes and not self.events:
            trainer.warn(
                f"{self.criterion.name} scores with {data.per_class} images of each class, the smallest class has "
                f"{samples // classes}"
            )
        layout = trainer.memory_format
        batches = [(inputs.contiguous(memory_format=layout), targets) for inputs, targets in batches]
        passes = criterion.cost(sum(len(inputs) for inputs, _ in batches))
        trainer.count_macs(round(passes * (self.step.scorings if batches else 1)))
        return batches

    def batch_scores(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return the criterion's scores on the current training batch with the current weights, as float32.

        This is a separate pass in eval mode, without penalties, noise or clipping, and is counted as the cost of a
        scoring. A criterion without data receives no batch. The values are not checked, to avoid a device
        synchronisation: the averaged scores are. The model is left unchanged.
        """
        step, batches = self.step, []
        if self.criterion.data.kind != "none":
            if trainer.batch is None:
                who = type(trainer).__name__
                raise RunError(f"{who} has no current batch: it must set `batch` in each step")
            batches = [trainer.batch]
        trainer.count_macs(round(self.criterion.cost(sum(len(inputs) for inputs, _ in batches))))
        with self._seeded():
            return as_scores(step.score(batches, trainer.loss), step.model, step.groups, self.criterion)

    def warn_if_off(self, trainer: Trainer, asked: float) -> None:
        """Warn if the sparsity deviates from the target, with the reason."""
        step = self.step
        reached = self.events[-1].reached if self.events else step.sparsity()
        if abs(reached - asked) <= step.tolerance:
            return
        share = step.options.keep_share
        kept = f", of which the share {share:g} is kept (keep_share)" if share else ""
        why = f"{step.why_short}{kept}, or the next {step.units} would exceed the target"
        if reached >= asked:
            why = f"as much was already pruned, or the {step.units} can only be pruned together"
        trainer.warn(f"{self.criterion.name}: asked for sparsity {asked:.4f}, reached {reached:.4f}: {why}")
