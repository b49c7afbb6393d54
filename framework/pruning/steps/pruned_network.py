"""The network of a run with its pruning step: what the triggers of pruning use to score, prune, and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import random_numbers_as_before
from secateur.framework.network.size import count_macs
from secateur.framework.pruning.scoring.criterion import Batch, Scores, as_scores
from secateur.framework.pruning.selection.ranking import Keep
from secateur.framework.pruning.selection.targets import Request
from secateur.framework.pruning.steps.step import PruningStep
from secateur.framework.training.events import PruneEvent
from secateur.utils.errors import RunError
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class PrunedNetwork:
    """The network of a run, which exists once it is traced.

    Args:
        step: The pruning step.
        events: List that the events are added to; masks and scores are kept only of the last one.
        seed: Seed of the criterion and of the scoring batches.
        masking: Whether pruned weights are held at zero.
        preserve_moment: Whether the optimizer's state is kept after pruning.
    """

    def __init__(
        self, step: PruningStep, events: list[PruneEvent], seed: int, masking: bool, preserve_moment: bool
    ) -> None:
        self.step, self.events = step, events
        self._seed, self._masking, self._preserve_moment = seed, masking, preserve_moment

    @property
    def name(self) -> str:
        """Name of the criterion in messages."""
        return type(self.step.criterion).__name__

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
        with random_numbers_as_before():
            torch.manual_seed(self._random_state())
            return self.step(request, batches, trainer.loss, strict, scores)

    def _random_state(self) -> int:
        return self._seed * 1_000_003 + self.step.criterion.step

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
        criterion, data = self.step.criterion, self.step.criterion.data
        batches = trainer.loaders.scoring_batches(
            data.kind,
            batches=data.batches,
            samples=data.samples,
            per_class=data.per_class,
            batch_size=trainer.loaders.train.batch_size,
            seed=self._seed,
            step=criterion.step,
        )
        samples, classes = sum(len(targets) for _, targets in batches), trainer.loaders.num_classes
        if data.per_class is not None and samples < data.per_class * classes and not self.events:
            trainer.warn(
                f"{self.name} scores with {data.per_class} images of each class, the smallest class has "
                f"{samples // classes}"
            )
        layout = trainer.memory_format
        batches = [(inputs.contiguous(memory_format=layout), targets) for inputs, targets in batches]
        passes = criterion.cost(sum(len(inputs) for inputs, _ in batches))
        trainer.count_macs(round(passes * (self.step.target.scorings if batches else 1)))
        return batches

    def batch_scores(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return the criterion's scores on the current training batch with the current weights, as float32.

        This is a separate pass in eval mode, without penalties, noise or clipping, and is counted as the cost of a
        scoring. A criterion without data receives no batch. The values are not checked, to avoid a device
        synchronisation: the averaged scores are. The model is left unchanged.
        """
        step, batches = self.step, []
        if step.criterion.data.kind != "none":
            if trainer.batch is None:
                who = type(trainer).__name__
                raise RunError(f"{who} has no current batch: it must set `batch` in each step")
            batches = [trainer.batch]
        trainer.count_macs(round(step.criterion.cost(sum(len(inputs) for inputs, _ in batches))))
        with random_numbers_as_before():
            torch.manual_seed(self._random_state())
            scores = step.score(batches, trainer.loss)
            return as_scores(scores, step.model, step.groups, step.criterion)

    def warn_if_off(self, trainer: Trainer, asked: float) -> None:
        """Warn if the sparsity deviates from the target, with the reason."""
        target = self.step.target
        reached = self.events[-1].reached if self.events else target.sparsity()
        if abs(reached - asked) <= target.tolerance:
            return
        share = target.options.keep_share
        kept = f", of which the share {share:g} is kept (keep_share)" if share else ""
        why = f"{target.why_short}{kept}, or the next {target.units} would exceed the target"
        if reached >= asked:
            why = f"as much was already pruned, or the {target.units} can only be pruned together"
        trainer.warn(f"{self.name}: asked for sparsity {asked:.4f}, reached {reached:.4f}: {why}")
