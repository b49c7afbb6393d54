"""The pruning of a run: the schedule of the criterion, modified by settings and trainer, and its listener."""

import torch

from secateur.framework.network.memory_format import fast_multiple
from secateur.framework.plugins.registry import registry
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.steps.averages import Tracking
from secateur.framework.pruning.steps.by_schedule import pruner_for
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.pruning.steps.rewinding import check_rewinding
from secateur.framework.pruning.steps.step import step_class
from secateur.framework.schedules.base import BEFORE_TRAINING, Never, Schedule, steps_of
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.settings.decisions import DEFAULT, FOUND, IMPLIED, MEASURED, USER, Decisions
from secateur.framework.settings.implied import FLAGS_OF
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.settings.schedule import check_moments, schedule_of, settings_of
from secateur.framework.settings.unused_flags import unused_flags, unused_presets
from secateur.framework.training.trainer import Trainer
from secateur.utils.errors import UsageError
from secateur.utils.loading.loaders import Loaders


def plan_pruning(config: RunConfig, decisions: Decisions, criterion: Criterion) -> tuple[Pruner, RunConfig]:
    """Return the pruning listener, and the settings with its schedule, scope, budget and rounding.

    Raises UsageError for a run that is too short, for settings that contradict the schedule, and for options
    without meaning for the criterion.
    """
    own, name = criterion.schedule, config.prune_criterion
    if not isinstance(own, Schedule):
        raise UsageError(
            f"{type(criterion).__name__}: schedule must be a Schedule such as Before(), During() or After(), "
            f"got {own!r}"
        )
    trainer: type[Trainer] = registry.get("trainers", config.train_scheme)
    steps = steps_of(own)
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
    config = decisions.choose(config, DEFAULT, f"of {name}", scope=scope, budget=budget)
    whose = name if type(schedule) is type(own) else f"the schedule {type(schedule).__name__.lower()}"
    config = decisions.choose(config, DEFAULT, f"of {whose}", **settings_of(schedule))
    if config.round_to == "auto":
        multiple = str(fast_multiple(torch.device(config.device)))
        config = decisions.choose(config, MEASURED, "fastest on this machine", round_to=multiple)
    check_moments(config, criterion, moments)
    share = trainer.least_share(**config.options("trainer")) if granularity != "weight" else 0.0
    return build_pruner(config, criterion, schedule, share), config


def build_pruner(config: RunConfig, criterion: Criterion, schedule: Schedule, least_share: float) -> Pruner:
    """Build the listener; raise UsageError for options without meaning for the criterion.

    `least_share` is the share of the channels of each group that the trainer keeps.
    """
    outer, kind = bool(config.outer_layer_pruning), step_class(criterion)
    given = config.options("pruning") | {
        "round_to": int(config.round_to),
        "keep_share": max(config.keep_share, least_share),
        "outer_layers": outer,
        "rank_inputs": outer and kind.units == "channels",
    }
    options = PruneOptions(**given)
    pruner = pruner_for(
        criterion,
        schedule,
        config.pruning_limit,
        config.epochs,
        seed=config.seed,
        masking=config.masking,
        preserve_moment=config.preserve_moment,
        tracking=Tracking(**config.options("tracking")) if config.track_importance else None,
        options=options,
    )
    if pruner.plan:
        kind.check_options(criterion, options)
    return pruner


def with_frequency(config: RunConfig, decisions: Decisions, pruner: Pruner, loaders: Loaders) -> RunConfig:
    """Return the settings with the frequency of an iterative schedule, which depends on the batches of the run."""
    if not isinstance(pruner.schedule, Iterative):
        return config
    batches = len(loaders.train) * config.epochs
    frequency = pruner.schedule.steps(batches)[0]
    return decisions.choose(config, FOUND, f"{batches} batches", frequency=frequency)


def _trainers_schedule(
    config: RunConfig, decisions: Decisions, trainer: type[Trainer], chosen: Schedule
) -> Schedule:
    """Return the schedule of the trainer; raise UsageError if the trainer overrides a given --schedule."""
    schedule = trainer.schedule(chosen, **config.options("trainer"))
    if schedule is not chosen:
        name = config.train_scheme
        if config.schedule is not None:
            given = _what_chose_the_schedule(config.schedule, decisions)
            raise UsageError(f"{name} determines the schedule: remove {given}")
        if (config.prune_delay, config.prune_freq) != (None, None):
            decisions.notes.append(f"{name} determines the schedule: prune_delay and prune_freq have no effect")
    return schedule


def _what_chose_the_schedule(word: str, decisions: Decisions) -> str:
    """Return what the user gave for a schedule: itself, its flags, or what stands for it."""
    decision = decisions.on("schedule")
    flags = [f"--{name}" for name in FLAGS_OF.get(word, ()) if decisions.source(name) in USER]
    if decision.source == IMPLIED and flags:
        return " and ".join(flags)
    return f"--schedule {word}" if decision.source in USER else f"what chose --schedule {word} ({decision.why})"


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
