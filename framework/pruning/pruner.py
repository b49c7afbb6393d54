"""The listener that prunes: it runs criterion, selection and mask or cut when the schedule says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framework.criterion import Criterion, Groups
from framework.hooks import hookimpl
from framework.measures import count_macs
from framework.pruning.cutting import unwrapped
from framework.pruning.masks import Masks
from framework.pruning.selection import Keep
from framework.pruning.step import PruneEvent, PruningStep, nothing_below
from framework.schedule import BEFORE_TRAINING

if TYPE_CHECKING:
    from framework.trainer import Trainer


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
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Without `masking` pruned weights are zero once and may grow again; `options` are further ones of
        `PruningStep`: budget, min_channels, round_to, ..."""
        self.criterion, self.plan, self.seed = criterion, plan, seed
        self.scope, self.protect, self.outer_layers, self.masking = scope, protect, outer_layers, masking
        self.options = dict(options or {})
        #: every step so far; masks and scores only of the last one
        self.events: list[PruneEvent] = []
        self._step: PruningStep | None = None
        self._masks: Masks | None = None

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
        self.criterion.start(trainer.model)
        self._prune(trainer, self.plan.get(BEFORE_TRAINING, ()))

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """Clipping must not see the gradients of masked weights."""
        if self._masks is not None:
            self._masks.apply_to_gradients()

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Criterions may track their scores in training."""
        self.criterion.observe(trainer.model, loss)

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """Prune if this epoch's end is in the plan."""
        self._prune(trainer, self.plan.get(trainer.epoch, ()))

    @hookimpl
    def training_ended(self, trainer: Trainer) -> None:
        """A run that was stopped early may not have come to its last pruning."""
        missed = [targets[-1] for moment, targets in sorted(self.plan.items()) if moment > trainer.epoch]
        if missed:
            asked = f"sparsity {missed[-1]:.4f} was never asked for"
            trainer.warn(f"{type(self.criterion).__name__}: training ended before the last pruning: {asked}")
        elif (
            self.events
            and self.criterion.threshold is not None
            and not any(event.removed for event in self.events)
        ):
            trainer.warn(nothing_below(self.criterion))

    def _prune(self, trainer: Trainer, targets: Sequence[float]) -> None:
        for number, target in enumerate(trainer.track(targets, "prune", len(targets)), 1):
            last = number == len(targets) and targets is self.plan[max(self.plan)]
            self._prune_to(trainer, target, strict=last)
        if targets:
            trainer.hooks.moment_ended(trainer=trainer)
        if targets and not self.masking:
            Masks(trainer.model).drop()
        if targets and self.criterion.threshold is None:
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
            why = why if reached < asked else "as much was gone already, or goes only together"
            who = type(self.criterion).__name__
            trainer.warn(f"{who}: asked for sparsity {asked:.4f}, reached {reached:.4f}: {why}")

    def _prune_to(self, trainer: Trainer, target: float, strict: bool) -> None:
        assert self._step is not None
        data = self.criterion.data
        trainer.optimizer.zero_grad(set_to_none=True)
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
        trainer.count_macs(round(passes * (2 if self._step.rank_inputs and batches else 1)))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed * 1_000_003 + self.criterion.step)
            event = self._step(target, batches, trainer.loss, strict)
        trainer.macs = count_macs(trainer.model, trainer.example_input)[0]
        if self.events:  # of those before only the numbers are kept: scores are as large as the network
            self.events[-1] = replace(self.events[-1], keep=Keep({}), scores={})
        self.events.append(event)
        trainer.hooks.pruned(trainer=trainer, event=event)
