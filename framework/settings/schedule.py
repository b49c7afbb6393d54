"""Conversion of flags to a schedule, with checks for contradictions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from secateur.framework.plugins.registry import registry
from secateur.framework.schedules.base import After, Before, During, Rounds, Schedule, chosen
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.settings.run_config import FLAGS, RunConfig
from secateur.utils.errors import UsageError

if TYPE_CHECKING:
    from secateur.framework.pruning.scoring.criterion import Criterion

#: values of --schedule; schedules of plug-ins have none
WHEN: dict[type, str] = {
    Before: "before",
    During: "during",
    After: "after",
    Rounds: "rounds",
    Iterative: "iterative",
}
#: schedules with flags of their own
OWN_FLAGS: dict[str, type[Rounds] | type[Iterative]] = {"rounds": Rounds, "iterative": Iterative}


def check_schedule(config: RunConfig) -> None:
    """Raise UsageError for settings that are incompatible with the schedule or with tracked scores."""
    criterion = registry.describe("criterions", config.prune_criterion)
    if config.owns_gates:
        _check_gates(config)
    if config.schedule in OWN_FLAGS:
        for name, flag in FLAGS.items():
            if "during" in flag.readers and getattr(config, name) is not None:
                raise UsageError(f"--{name} is for --schedule during or after, not {config.schedule}")
    if config.schedule == "iterative" and criterion.prunes:
        _check_steps(config, criterion.granularity)
    if config.track_importance and criterion.granularity == "channel" and config.outer_layer_pruning:
        raise UsageError("--track_importance and --outer_layer_pruning exclude each other: inputs are not tracked")


def _check_gates(config: RunConfig) -> None:
    """Raise UsageError for flags of schedules and scores, which --l0 does not use."""
    if config.schedule in OWN_FLAGS:
        raise UsageError(
            f"--l0 prunes by gates that are trained: leave out --schedule {config.schedule} and its flags"
        )
    for flag in ("track_importance", "use_l2", "use_init"):
        if getattr(config, flag):
            raise UsageError(f"--l0 prunes by gates that are trained: --{flag} would have no effect")


def _check_steps(config: RunConfig, granularity: str) -> None:
    """Raise UsageError for settings that are incompatible with --schedule iterative."""
    word = "--schedule iterative"
    if config.round_to != "1":
        raise UsageError(f"--round_to is incompatible with {word}: use --group_size {config.round_to}")
    if config.outer_layer_pruning and granularity == "channel":
        raise UsageError(f"--outer_layer_pruning is incompatible with {word}, which does not rank inputs")
    if config.enable_rewinding:
        raise UsageError(f"--enable_rewinding is incompatible with {word}, which alternates training and pruning")
    if config.track_importance:
        raise UsageError(
            f"--track_importance is incompatible with {word}, which averages over all batches (--pruning_momentum)"
        )


def schedule_of(config: RunConfig, own: Schedule) -> Schedule:
    """Return the schedule of the criterion, modified by the settings of the user."""
    word = config.schedule or WHEN.get(type(own), "")
    kind = OWN_FLAGS.get(word)
    if kind is None:
        return chosen(own, config.schedule, config.prune_delay, config.prune_freq, config.snip_steps)
    if isinstance(own, kind):
        return replace(own, **config.options(word))
    return kind(**({"frequency": None} if kind is Iterative else {}) | config.options(word))


def settings_of(schedule: Schedule) -> dict[str, Any]:
    """Return the settings that give the schedule, so that the config of a run repeats it."""
    word = WHEN.get(type(schedule))
    values: dict[str, Any] = {"schedule": word}
    for name, flag in FLAGS.items():
        if word in flag.readers:
            values[name] = getattr(schedule, flag.readers[word])
    if isinstance(schedule, Rounds) and schedule.thresholds:
        values["pruning_limit"] = schedule.thresholds[-1]
    return values


def check_moments(config: RunConfig, criterion: Criterion, plan: dict[int, list[float]]) -> None:
    """Raise UsageError if scores that depend on training are requested before training."""
    if any(moment < 0 for moment in plan):
        reason = f"but {config.prune_criterion} prunes before training"
        if config.track_importance:
            raise UsageError(f"--track_importance is for pruning during training, {reason}: add --schedule during")
        if criterion.uses_initial_weights:
            raise UsageError(f"--use_init is for pruning during training, {reason}: all weights are initial")
