"""The listener that prunes by a schedule."""

from dataclasses import replace
from typing import Any

from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.targets import WeightTarget, check_unused, target_class
from secateur.framework.pruning.steps.at_moments import AtMoments
from secateur.framework.pruning.steps.iterative import EveryNBatches
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.schedules.base import Schedule
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.utils.errors import UsageError


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
