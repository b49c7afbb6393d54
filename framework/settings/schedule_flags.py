"""Conversion of flags to a schedule, with checks for contradictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.schedules.base import After, Before, During, Schedule, chosen
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.schedules.rounds import Rounds, shares
from secateur.framework.settings.run_config import CRITERION_FLAGS, RunConfig
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
#: flags of a schedule -> the fields that they set
ROUNDS = {"n_rounds": "n_rounds", "thresholds": "thresholds", "warmup_epochs": "warmup"}
ITERATIVE_FLAGS = {
    "frequency": "frequency",
    "prune_per_iteration": "per_step",
    "maximum_pruning_iterations": "maximum",
    "prune_neurons_max": "most",
    "start_pruning_after_n_iterations": "start",
    "pruning_momentum": "momentum",
    "group_size": "group_size",
    "l2_normalization_per_layer": "l2_per_layer",
    "pruning_threshold": "loss_limit",
    "fixed_criteria": "fixed_criteria",
    "fixed_layer": "fixed_layer",
    "flops_regularization": "flops",
}
#: flags that only one schedule reads
FLAGS_OF = {"rounds": (*ROUNDS, "lr_prune"), "iterative": tuple(ITERATIVE_FLAGS)}
#: flags whose value -1 stands for None
NONE = {"prune_neurons_max": -1, "fixed_layer": -1}


def use_schedule_flags(config: RunConfig) -> None:
    """Choose the schedule of flags that only it reads; raise UsageError if other flags contradict it."""
    config.thresholds = shares(config.thresholds)
    asked = {word: _given(config, names) for word, names in FLAGS_OF.items()}
    if asked["rounds"] and asked["iterative"]:
        raise UsageError(
            f"--{asked['rounds'][0]} is for --schedule rounds and --{asked['iterative'][0]} for --schedule "
            "iterative: use flags of one schedule"
        )
    for word, names in asked.items():
        if names and config.schedule is None:
            config.schedule = word
            config.given.add("schedule")
            config.notes.append(f"--{names[0]} is for --schedule {word}, which is used")
        elif names and config.schedule != word:
            raise UsageError(f"--{names[0]} is for --schedule {word}, not {config.schedule}")
    if config.thresholds:
        _use_thresholds(config)
    if config.fixed_layer not in (None, -1) and "layer" in _criterions_own(config):  # it scores only this layer
        config.set.setdefault("criterion", {}).setdefault("layer", config.fixed_layer)


def _criterions_own(config: RunConfig) -> list[str]:
    return option_names(registry.get("criterions", config.prune_criterion))


def _given(config: RunConfig, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if getattr(config, name) not in (None, ())]


def _use_thresholds(config: RunConfig) -> None:
    """Set the limit to the last threshold, and the number of rounds to the number of thresholds."""
    shown, last = ",".join(f"{threshold:g}" for threshold in config.thresholds), config.thresholds[-1]
    if config.n_rounds not in (None, len(config.thresholds)):
        raise UsageError(
            f"--n_rounds {config.n_rounds} and --thresholds {shown}, which are {len(config.thresholds)} rounds: "
            "give one of the two"
        )
    if "pruning_limit" in config.given and abs(config.pruning_limit - last) > 1e-9:
        raise UsageError(
            f"--pruning_limit {config.pruning_limit:g} and --thresholds {shown}, the last of which is the limit: "
            "give one of the two"
        )
    config.n_rounds, config.pruning_limit = len(config.thresholds), last


def check_schedule(config: RunConfig) -> None:
    """Raise UsageError for settings that are incompatible with the schedule or with tracked scores."""
    name = config.prune_criterion
    granularity = registry.describe("criterions", name).granularity
    if config.l0:
        _check_gates(config)
    if config.schedule in FLAGS_OF:
        for flag in ("prune_delay", "prune_freq"):
            if getattr(config, flag) is not None:
                raise UsageError(f"--{flag} is for --schedule during or after, not {config.schedule}")
    if config.schedule == "iterative" and name != "EmptyCrit":
        _check_steps(config, granularity)
    if config.track_importance and granularity == "channel" and config.outer_layer_pruning:
        raise UsageError("--track_importance and --outer_layer_pruning exclude each other: inputs are not tracked")


def _check_gates(config: RunConfig) -> None:
    """Raise UsageError for flags of schedules and scores, which --l0 does not use."""
    if config.schedule in FLAGS_OF:
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


def check_criterion_flags(config: RunConfig) -> None:
    """Raise UsageError for a shorthand flag of an option that the criterion lacks.

    `--T` is not checked, since it also sets the temperature of training for every criterion.
    """
    for flag, option in CRITERION_FLAGS.items():
        given = getattr(config, flag)
        if flag == "T" or given is None or given is False:
            continue
        name = config.prune_criterion
        criterion = registry.get("criterions", name)
        elements = flag in ("use_l2", "use_init") and callable(getattr(criterion, "element_scores", None))
        if option not in option_names(criterion) and not elements:
            lacks = "no scores of individual weights" if flag.startswith("use_") else "no such option"
            raise UsageError(f"--{flag}: {name} has {lacks}")


def follow_set(config: RunConfig) -> None:
    """Copy options given by `--set` to their shorthand flags; raise UsageError if both are given and differ.

    `--T` is excluded: it is the temperature of training, and `--set` may give scoring another one.
    """
    options = config.set.get("criterion", {})
    for flag, option in CRITERION_FLAGS.items():
        if flag == "T" or not isinstance(options.get(option), int | float):
            continue
        if flag in config.given and getattr(config, flag) not in (None, options[option]):
            raise UsageError(f"--{flag} and --set criterion.{option} contradict each other")
        setattr(config, flag, options[option])


def schedule_of(config: RunConfig, own: Schedule) -> Schedule:
    """Return the schedule of the criterion, modified by the settings of the user."""
    word = config.schedule or WHEN.get(type(own))
    if word == "rounds":
        return Rounds(**_fields(own, Rounds, ROUNDS) | _values(config, ROUNDS))
    if word == "iterative":
        return Iterative(**_fields(own, Iterative, ITERATIVE_FLAGS) | _values(config, ITERATIVE_FLAGS))
    return chosen(own, config.schedule, config.prune_delay, config.prune_freq, config.snip_steps)


def _fields(own: Schedule, kind: type, names: dict[str, str]) -> dict[str, Any]:
    """Return the fields of the schedule of the criterion if it is of that kind."""
    if not isinstance(own, kind):
        return {"frequency": None} if kind is Iterative else {}
    return {field: getattr(own, field) for field in names.values()}


def _values(config: RunConfig, names: dict[str, str]) -> dict[str, Any]:
    values = {flag: getattr(config, flag) for flag in names}
    asked = {flag: value for flag, value in values.items() if value not in (None, ())}
    return {names[flag]: value for flag, value in asked.items() if flag not in NONE or value != NONE[flag]}


def write_back(config: RunConfig, schedule: Schedule) -> None:
    """Write the fields of the schedule to the config, so that a run can be repeated."""
    config.schedule = WHEN.get(type(schedule))
    if isinstance(schedule, During):
        config.prune_delay, config.prune_freq = schedule.delay, schedule.freq
    names = ROUNDS if isinstance(schedule, Rounds) else ITERATIVE_FLAGS if isinstance(schedule, Iterative) else {}
    for flag, field in names.items():
        setattr(config, flag, getattr(schedule, field))
    if isinstance(schedule, Rounds) and schedule.thresholds:
        config.pruning_limit = schedule.thresholds[-1]


def check_moments(config: RunConfig, criterion: Criterion, plan: dict[int, list[float]]) -> None:
    """Raise UsageError if scores that depend on training are requested before training."""
    if any(moment < 0 for moment in plan):
        reason = f"but {config.prune_criterion} prunes before training"
        if config.track_importance:
            raise UsageError(f"--track_importance is for pruning during training, {reason}: add --schedule during")
        if criterion.uses_initial_weights:
            raise UsageError(f"--use_init is for pruning during training, {reason}: all weights are initial")
