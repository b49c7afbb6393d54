"""The listener that prunes every few batches, with scores averaged over the batches in between."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.channels.slicing import shrink
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Criterion, check_scores
from secateur.framework.pruning.selection.budgets import Macs
from secateur.framework.pruning.selection.ranking_in_sets import Chunks
from secateur.framework.pruning.selection.select import Keep
from secateur.framework.pruning.selection.targets import keep_ranked
from secateur.framework.pruning.steps.batch_scores import batch_scores
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer

#: lower bound of a layer's norm
TINY = 1e-8


class Averages:
    """Mean scores of the batches since the last step, averaged over steps and cut together with the network."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.value: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Add the scores of a batch."""
        self._sums = {name: score + self._sums[name] if self._sums else score for name, score in scores.items()}
        self._count += 1

    def step(self, keep_adding: bool = False) -> None:
        """Complete a step. With `keep_adding` the mean includes all batches so far and the following ones."""
        mean = {name: total / self._count for name, total in self._sums.items()}
        if keep_adding or not self.value or self.momentum == 0:  # 0 * inf would be NaN
            self.value = mean
        else:
            m = self.momentum
            self.value = {name: m * self.value[name] + (1 - m) * new for name, new in mean.items()}
        if not keep_adding:
            self._sums, self._count = {}, 0

    def shrink(self, event: PruneEvent, left: Collection[str]) -> None:
        """Remove the scores of cut channels, of cut parts of weights, and of names that are not in `left`.

        Scores of masked weights are kept, but not used again.
        """
        value = {}
        for name in [name for name in self.value if name in left]:
            score = self.value[name]
            if name in event.kept_indices:
                score = shrink(score, event.kept_indices[name])
            elif score.dim() == 1 and name in event.keep:
                score = score[event.keep[name].to(score.device)]
            value[name] = score
        self.value = value


def normed(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide each layer's scores by their L2 norm, which excludes infinite scores."""
    norms = {name: score.where(score != torch.inf, 0).norm() for name, score in scores.items()}
    return {name: score / (norms[name] + TINY) for name, score in scores.items()}


class IterativePruner(Pruner):
    """Score every training batch and cut channels every `frequency` batches, see `Iterative`.

    The scores are computed after the optimizer's step by a separate pass in eval mode over the same batch: an
    iteration costs about twice as much until the last step, which is included in the cumulative multiply-adds. A
    criterion without data is scored once per step, at no cost.
    """

    #: granularities that this class supports
    ranks: tuple[str, ...] = ("channel",)
    #: name of the pruned entries in messages
    what = "channels"
    #: reason for pruning fewer entries than requested
    short = "the remaining channels are protected or the last of their layer"

    def __init__(
        self, criterion: Criterion, schedule: Iterative, limit: float, epochs: int, **options: Any
    ) -> None:
        """`limit` is the target share of the budget; it is ignored if `schedule` prunes numbers of channels."""
        super().__init__(criterion, schedule.plan(0.0 if schedule.counted else limit, epochs), **options)
        if getattr(criterion, "granularity", None) not in self.ranks:
            raise UsageError(f"{type(self).__name__} needs a channel criterion, {criterion.name} is not one")
        self.iterative, self.limit = schedule, limit
        self._frequency, self._steps = 1, None if schedule.per_step is not None else 1
        self._averages = Averages(0.0 if criterion.exact else schedule.momentum)
        #: batches since the last check and in total, completed steps, pruned entries
        self._loss: Tensor | None = None
        self._waited = self._seen = self._done = self._gone = 0
        self._over = self._frozen = self._told = False
        self._only: str | None = None

    def fit(self, batches: int) -> int:
        """Plan the steps of a run of `batches` batches; return the batches per step, see `Iterative.steps`."""
        self._frequency, self._steps = self.iterative.steps(batches)
        return self._frequency

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Trace the network; raise UsageError if `fixed_layer` does not exist or nothing can be pruned."""
        super().prepare(model, example_input)
        names, wanted = list(free_groups(self.groups)), self.iterative.fixed_layer
        if wanted is not None:
            if wanted >= len(names):
                raise UsageError(
                    f"fixed_layer {wanted}: {type(model).__name__} has {len(names)} layers to prune, 0 to "
                    f"{len(names) - 1} ({', '.join(names)})"
                )
            self._only = names[wanted]

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Attach the masks, prune if it is due before training, and plan the steps of the run."""
        super().run_started(trainer)
        self.fit(len(trainer.loaders.train) * trainer.settings.epochs)

    def phase(self, trainer: Trainer) -> str:
        """Return "warmup" if no step of the epoch prunes yet, "final" after the last step, otherwise "pruning"."""
        if self._over:
            return "final"
        ahead = max(1, self.iterative.start) - self._done
        first = self._seen + self._frequency - self._waited + (ahead - 1) * self._frequency
        last = trainer.progress.step + len(trainer.loaders.train)
        return "warmup" if ahead > 0 and first > last else "pruning"

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Score the batch, and run a step after every `frequency` batches."""
        with held_to_contract(self.criterion, "observe", trainer.model):
            self.criterion.observe(trainer.model, loss)
        if self._over:
            return
        assert self._step is not None
        self._loss = loss if self._loss is None else self._loss + loss
        self._waited, self._seen = self._waited + 1, self._seen + 1
        if not self._frozen and self.criterion.data.kind != "none":
            self._averages.add(batch_scores(self._step, trainer, self.seed))
        if self._seen % self._frequency == 0:
            self._check(trainer)

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """Do nothing: steps are counted in batches, not in epochs."""

    @hookimpl
    def training_ended(self, trainer: Trainer) -> None:
        """Warn if steps are missing."""
        trainer.progress.phase = "final"
        if not self._over:
            wanted = "more" if self._steps is None else str(self._steps)
            trainer.warn(
                f"{self.criterion.name}: training ended after {self._done} of {wanted} steps of "
                f"{self._frequency} batches, {self._gone} {self.what} were pruned"
            )

    def _check(self, trainer: Trainer) -> None:
        """Run a step unless the mean loss is above `loss_limit`."""
        assert self._loss is not None and self._step is not None
        mean, limit = self._loss / self._waited, self.iterative.loss_limit
        self._loss, self._waited = None, 0
        if limit is not None and float(mean) > limit:
            return
        self._done += 1
        prunes = self._done >= self.iterative.start
        if not self._frozen:
            if self.criterion.data.kind == "none":
                self._averages.add(batch_scores(self._step, trainer, self.seed))
            self._averages.step(keep_adding=self.iterative.fixed_criteria)
            self._frozen = self.iterative.fixed_criteria and prunes
            step, scores = self._step, self._averages.value
            self._averages.value = check_scores(scores, step.model, step.groups, self.criterion)
        if prunes:
            self._cut(trainer)
        self._over = self._over or self._done == self._steps

    def _cut(self, trainer: Trainer) -> None:
        """Cut the channels with the lowest scores."""
        assert self._step is not None
        trainer.optimizer.zero_grad(set_to_none=True)
        keep, asked, channels = self._chosen(trainer)
        scores = {name: self._averages.value[name] for name in keep}
        if keep.removed:
            removed = self._step.remove(keep)
            self.criterion.step += 1
            self._conclude(
                trainer, PruneEvent(asked, self._step.sparsity(), keep, scores, removed, number=channels)
            )
        self._warn_if_short(trainer, asked, (channels or 0) - keep.removed)

    def _conclude(self, trainer: Trainer, event: PruneEvent) -> None:
        """Update averages, counters and optimizer after a pruning step, and notify the listeners."""
        assert self._step is not None
        left = free_groups(self._step.groups).keys() | prunable_weights(self._step.model).keys()
        self._averages.shrink(event, left)
        self._gone += event.removed
        if event.removed and not self.preserve_moment:
            unwrapped(trainer.optimizer).state.clear()
        self._tell(trainer, event)

    def _chosen(self, trainer: Trainer) -> tuple[Keep, float | None, int | None]:
        """Return the keep masks and either the target share or the number of channels."""
        assert self._step is not None
        step, plan = self._step, self.iterative
        ranking = self._ranking()
        room = None if plan.most is None else plan.most - self._gone
        if plan.per_step is not None:
            wanted = plan.per_step if room is None else min(plan.per_step, room)
            keep = ranking.keep(ranking.within(wanted))
            self._over = room is not None and wanted == room
            if plan.counted:
                return keep, None, wanted
        share = self.limit * self._part()
        budget = step.budget_of(free_groups(step.groups))
        selected = keep_ranked(ranking, share, step.limits(), budget, strict=False)
        if plan.per_step is not None:
            self._over = selected.removed <= keep.removed
            return (selected, share, None) if self._over else (keep, None, wanted)
        if room is not None and selected.removed >= room:
            self._over = True
            return ranking.keep(ranking.within(room)), None, room
        return selected, share, None

    def _part(self) -> float:
        """Return the fraction of the limit that is due after this step."""
        if self._steps is None:
            return 1.0
        before = max(1, self.iterative.start) - 1
        return (self._done - before) / (self._steps - before)

    def _ranking(self) -> Chunks:
        """Return the ranking of the prunable channels."""
        assert self._step is not None
        step, plan = self._step, self.iterative
        free = free_groups(step.groups)
        scores = {name: self._averages.value[name] for name in free if self._only in (None, name)}
        if plan.l2_per_layer:
            scores = normed(scores)
        penalties: dict[str, float] = {}
        if plan.flops > 0:
            macs = Macs(step.model, free, step.example_input)
            penalties = {name: plan.flops * macs.freed(name) for name in scores}
        return Chunks(step.model, free, scores, step.limits(), plan.group_size, penalties)

    def _warn_if_short(self, trainer: Trainer, asked: float | None, missing: int) -> None:
        """Warn once if the target cannot be reached."""
        assert self._step is not None
        last = self._over or self._done == self._steps
        if asked is not None and last:
            self._warn_if_off(trainer, asked, self._step.sparsity())
        elif asked is None and missing >= self.iterative.group_size and not self._told:
            self._told = True
            trainer.warn(
                f"{self.criterion.name}: in step {self._done} {missing} {self.what} fewer than "
                f"requested were pruned: {self.short}"
            )
