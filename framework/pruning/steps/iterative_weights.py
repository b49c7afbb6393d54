"""Pruning every few batches for criterions that rank weights: weights are masked, also by exact numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from secateur.framework.network.masks import Masks
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.targets import count_weights
from secateur.framework.pruning.steps.iterative import IterativePruner, normed
from secateur.framework.pruning.steps.step import nothing_below
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.training.hooks import hookimpl
from secateur.utils.errors import UsageError

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class IterativeWeightPruner(IterativePruner):
    """Iterative pruning for criterions of weights, of both weights and channels, and with a fixed threshold.

    Weights are masked every `frequency` batches by the averages of their scores; criterions of both also cut
    channels. Numbers of weights can be requested if only weights are ranked; a threshold prunes the scores at or
    below it in each step.
    """

    ranks = ("weight", "channel", "both")
    what = "weights"
    short = "the remaining weights are protected"

    def __init__(
        self, criterion: Criterion, schedule: Iterative, limit: float, epochs: int, **options: Any
    ) -> None:
        """`limit` is the target share of the weights; it is ignored if `schedule` prunes numbers of weights."""
        super().__init__(criterion, schedule, limit, epochs, **options)
        who = criterion.name
        single = criterion.granularity == "weight" and criterion.threshold is None
        why = "prunes weights" if single else "ranks weights and channels together"
        why = why if criterion.threshold is None else "prunes by a fixed threshold"
        for flag, value, idle in (
            ("group_size", schedule.group_size, 1),
            ("flops_regularization", schedule.flops, 0),
            ("fixed_layer", schedule.fixed_layer, None),
            ("prune_per_iteration", None if single else schedule.per_step, None),
            ("prune_neurons_max", None if single else schedule.most, None),
            ("l2_normalization_per_layer", schedule.l2_per_layer and criterion.threshold is not None, False),
        ):
            if value != idle:
                raise UsageError(f"--{flag} cannot be combined with {who}, which {why}")
        scope = self.scope or criterion.scope
        for flag, number in (("prune_per_iteration", schedule.per_step), ("prune_neurons_max", schedule.most)):
            if number is not None and scope != "global":
                raise UsageError(
                    f"--{flag} prunes the lowest of all weights: {who} needs --scope global, not {scope}"
                )
            if number is not None and not self.masking:
                raise UsageError(
                    f"--{flag} cannot be combined with --no_masking: regrown weights would count twice"
                )

    @hookimpl
    def training_ended(self, trainer: Trainer) -> None:
        """Warn if steps are missing, or if no score was below the threshold."""
        super().training_ended(trainer)
        if self.criterion.threshold is not None and self.limit > 0 and self._over and not self._gone:
            trainer.warn(nothing_below(self.criterion))

    def _cut(self, trainer: Trainer) -> None:
        """Mask the lowest weights, and cut the lowest channels if channels are ranked too."""
        assert self._step is not None
        trainer.optimizer.zero_grad(set_to_none=True)
        target, number = self._target(trainer)
        scores = self._averages.value
        scores = normed(scores) if self.iterative.l2_per_layer else scores
        event = self._step(target, (), trainer.loss, strict=False, scores=scores)
        last = self._over or self._done == self._steps
        if number is not None:
            event = replace(event, asked=None, number=number)
        if not self.masking:
            Masks(trainer.model).drop()
        if event.removed or last:
            self._conclude(trainer, event)
        if event.asked is not None and last:
            self._warn_if_off(trainer, event.asked, event.reached)
        self._warn_if_short(trainer, None, 0 if number is None else number - event.removed)

    def _target(self, trainer: Trainer) -> tuple[float, int | None]:
        """Return the target share of pruned weights after this step, and the number of weights if one is set."""
        plan, share = self.iterative, self.limit * self._part()
        if plan.per_step is None and plan.most is None:
            return share, None
        gone, total = count_weights(trainer.model)
        wanted = round(share * total) - gone if plan.per_step is None else plan.per_step
        if plan.per_step is not None and not plan.counted and wanted >= round(self.limit * total) - gone:
            self._over = True
            return self.limit, None
        wanted = min(wanted, total - gone)
        room = None if plan.most is None else plan.most - self._gone
        if room is not None and wanted >= room:
            self._over, wanted = True, room
        elif plan.per_step is None:
            return share, None
        return (gone + wanted) / total, wanted if wanted == room else plan.per_step
