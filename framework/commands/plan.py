"""When and how far a run prunes: the schedule of the criterion, modified by the settings and the trainer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from secateur.framework.network.memory_format import fast_multiple
from secateur.framework.plugins.registry import registry
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.steps.rewinding import check_rewinding
from secateur.framework.schedules.base import BEFORE_TRAINING, Never, Schedule
from secateur.framework.settings.decisions import DEFAULT, MEASURED, Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.settings.schedule import check_moments, schedule_of, settings_of
from secateur.framework.settings.unused_flags import unused_flags, unused_presets
from secateur.framework.training.trainer import Trainer
from secateur.utils.errors import UsageError


class Plan(NamedTuple):
    """The pruning of a run.

    Attributes:
        schedule: The schedule.
        moments: The targets of each moment, see `Schedule.plan`.
        least_share: The share of the channels of each group that the trainer keeps.
    """

    schedule: Schedule
    moments: Mapping[int, Sequence[float]]
    least_share: float = 0.0

    @property
    def counted(self) -> bool:
        """Whether the number of pruned units ends pruning, and not the sparsity."""
        return bool(getattr(self.schedule, "counted", False))


def plan_pruning(config: RunConfig, decisions: Decisions, criterion: Criterion) -> tuple[Plan, RunConfig]:
    """Return the plan, and the settings with its schedule, scope, budget and rounding.

    Raises UsageError for a run that is too short, and for settings that contradict the schedule.
    """
    own, name = criterion.schedule, config.prune_criterion
    if not isinstance(own, Schedule):
        raise UsageError(
            f"{type(criterion).__name__}: schedule must be a Schedule such as Before(), During() or After(), "
            f"got {own!r}"
        )
    trainer: type[Trainer] = registry.get("trainers", config.train_scheme)
    steps = getattr(own, "steps", 1)
    if steps > 1 and "snip_steps" not in decisions.given:
        config = decisions.choose(config, DEFAULT, f"steps of {name}", snip_steps=steps - 2)
    schedule = own
    if not isinstance(own, Never):  # a criterion that never prunes ignores the settings of the schedule
        schedule = _trainers_schedule(config, decisions, trainer, schedule_of(config, own))
    moments = schedule.plan(config.pruning_limit, config.epochs)
    decisions.notes += unused_flags(config, decisions, steps > 1)
    decisions.notes += unused_presets(config, BEFORE_TRAINING in moments)
    decisions.notes += _remarks(config, decisions, criterion, schedule)
    if config.enable_rewinding:
        check_rewinding(config.rewind_to, moments, config.epochs)
        if config.fold:
            raise UsageError("--fold and --enable_rewinding exclude each other: rewound weights are not folded")
    granularity = getattr(criterion, "granularity", None)
    budget = config.budget or ("nodes" if granularity == "channel" else "weights")
    scope = config.scope or criterion.scope
    config = decisions.choose(config, DEFAULT, f"of {name}", **settings_of(schedule), scope=scope, budget=budget)
    if config.round_to == "auto":
        multiple = str(fast_multiple(torch.device(config.device)))
        config = decisions.choose(config, MEASURED, "fastest on this machine", round_to=multiple)
    check_moments(config, criterion, moments)
    share = trainer.least_share(**config.options("trainer")) if granularity != "weight" else 0.0
    return Plan(schedule, moments, share), config


def _trainers_schedule(
    config: RunConfig, decisions: Decisions, trainer: type[Trainer], chosen: Schedule
) -> Schedule:
    """Return the schedule of the trainer; raise UsageError if the trainer overrides a given --schedule."""
    schedule = trainer.schedule(chosen, **config.options("trainer"))
    if schedule is not chosen:
        name = config.train_scheme
        if config.schedule is not None:
            raise UsageError(f"{name} determines the schedule: remove --schedule {config.schedule}")
        if (config.prune_delay, config.prune_freq) != (None, None):
            decisions.notes.append(f"{name} determines the schedule: prune_delay and prune_freq have no effect")
    return schedule


def _remarks(config: RunConfig, decisions: Decisions, criterion: Criterion, schedule: Schedule) -> list[str]:
    """Return remarks on settings that the schedule or the criterion does not use."""
    name, remarks = config.prune_criterion, []
    if isinstance(schedule, Never) and config.schedule in ("rounds", "iterative"):
        remarks.append(f"{name} prunes nothing: --schedule {config.schedule} has no effect")
    if config.schedule == "before" and (config.prune_delay, config.prune_freq) != (None, None):
        remarks.append(f"{name} prunes before training: prune_delay and prune_freq have no effect")
    if "pruning_limit" in decisions.flags:  # not in a file, see `unused_flags`
        if criterion.threshold is not None:
            effect = "has no effect" if config.pruning_limit > 0 else "0 prunes nothing"
            rule = f"{name} prunes by a fixed threshold, {criterion.threshold:g}"
            remarks.append(f"{rule}: --pruning_limit {effect}")
        if getattr(schedule, "counted", False):
            remarks.append("the number of channels ends pruning: --pruning_limit has no effect")
    return remarks
