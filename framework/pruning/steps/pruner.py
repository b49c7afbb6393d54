"""The listener that prunes on schedule: it runs the criterion, the selection, and masks or cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from secateur.framework.network.masks import Masks
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.averages import Tracking
from secateur.framework.pruning.steps.iterative import EveryNBatches, iterative_options
from secateur.framework.pruning.steps.pruned_network import PrunedNetwork
from secateur.framework.pruning.steps.step import PruningStep
from secateur.framework.pruning.steps.triggers import AtMoments, Trigger
from secateur.framework.schedules.base import Schedule
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class Pruner:
    """Prune the trainer's network at the moments of a plan, or every few batches.

    Args:
        criterion: The criterion.
        plan: Moment -> rising target sparsities, see `Schedule.plan`; the run does not prune if it is empty.
        schedule: The schedule of the plan, if it is known. An `Iterative` schedule prunes every few batches.
        limit: Target sparsity of an `Iterative` schedule.
        seed: Seed of the criterion and of the scoring batches.
        masking: Hold pruned weights at zero. Without it they are set to zero once and may grow again.
        preserve_moment: Keep the optimizer's state. Without it the state is cleared after each pruning.
        tracking: Average the scores of the last training batches instead of scoring at the moment itself.
        options: What may be pruned, and how.
    """

    def __init__(
        self,
        criterion: Criterion,
        plan: Mapping[int, Sequence[float]],
        *,
        schedule: Schedule | None = None,
        limit: float = 0.0,
        seed: int = 0,
        masking: bool = True,
        preserve_moment: bool = True,
        tracking: Tracking | None = None,
        options: PruneOptions | None = None,
    ) -> None:
        self.criterion, self.plan, self.schedule, self.options = criterion, plan, schedule, options
        #: all steps so far; masks and scores only of the last one
        self.events: list[PruneEvent] = []
        self._trigger, self._limit, self._tracking = Trigger(), limit, tracking
        self._seed, self._masking, self._preserve_moment = seed, masking, preserve_moment
        self._step: PruningStep | None = None
        self._masks: Masks | None = None

    def prepare(self, model: nn.Module, example_input: Tensor) -> None:
        """Trace the network; raise UsageError if the criterion cannot prune anything."""
        if self.plan:
            self._step = PruningStep(model, self.criterion, example_input, self.options)
            self._step.target.check_reachable(self.plan[max(self.plan)][-1])
            network = PrunedNetwork(self._step, self.events, self._seed, self._masking, self._preserve_moment)
            if isinstance(self.schedule, Iterative):
                self._trigger = EveryNBatches(network, self.schedule, self._limit)
            else:
                self._trigger = AtMoments(network, self.plan, self._tracking)

    @property
    def groups(self) -> Groups:
        """The present channel groups; empty before `prepare`."""
        return {} if self._step is None else self._step.groups

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Attach the network's present masks, then prune if it is due before training."""
        self._masks = Masks(trainer.model)
        self._masks.attach(unwrapped(trainer.optimizer))
        if self._step is None:
            self.prepare(trainer.model, trainer.example_input)
        if self._step is not None:
            self._step.attach(trainer.optimizer, trainer.companions)
        self.criterion.seed = self._seed
        with held_to_contract(self.criterion, "start", trainer.model):
            self.criterion.start(trainer.model)
        self._trigger.run_started(trainer)

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """Set the phase of the epoch, a column of the metrics."""
        trainer.progress.phase = self._trigger.phase(trainer)
        self._trigger.epoch_started(trainer)

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """Zero the gradients of masked weights before gradient clipping."""
        if self._masks is not None:
            self._masks.apply_to_gradients()

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Call the criterion's `observe`, then the trigger."""
        with held_to_contract(self.criterion, "observe", trainer.model):
            self.criterion.observe(trainer.model, loss)
        self._trigger.batch_ended(trainer, loss)

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """Prune if it is due."""
        self._trigger.epoch_ended(trainer)

    @hookimpl
    def training_ended(self, trainer: Trainer) -> None:
        """Warn of missed targets."""
        trainer.progress.phase = "final"
        self._trigger.training_ended(trainer)


def pruner_for(
    criterion: Criterion,
    schedule: Schedule,
    limit: float,
    epochs: int,
    *,
    seed: int = 0,
    masking: bool = True,
    preserve_moment: bool = True,
    tracking: Tracking | None = None,
    options: PruneOptions | None = None,
) -> Pruner:
    """Return the listener that prunes by a schedule.

    Args:
        criterion: The criterion.
        schedule: The schedule.
        limit: Target sparsity; it is ignored if an `Iterative` schedule prunes numbers of units.
        epochs: Number of epochs of the run.
        seed, masking, preserve_moment, tracking, options: See `Pruner`.

    Raises:
        UsageError: If the run is too short for the schedule, or the schedule has no meaning for the criterion.
    """
    plan = schedule.plan(0.0 if isinstance(schedule, Iterative) and schedule.counted else limit, epochs)
    if isinstance(schedule, Iterative):
        options = iterative_options(criterion, schedule, options or PruneOptions(), masking)
    return Pruner(
        criterion, plan, schedule=schedule, limit=limit, seed=seed, masking=masking,
        preserve_moment=preserve_moment, tracking=tracking, options=options,
    )  # fmt: skip
