"""Settings that follow from others that were given, such as the schedule from flags that only it reads."""

from collections.abc import Collection

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.schedules.base import shares
from secateur.framework.settings.decisions import Reasoned, because
from secateur.framework.settings.run_config import FLAGS, RunConfig
from secateur.utils.errors import UsageError

#: schedules with flags of their own, and these flags
FLAGS_OF = {
    word: [name for name, flag in FLAGS.items() if word in flag.readers or flag.needs == ("schedule", (word,))]
    for word in ("rounds", "iterative")
}


def implied(config: RunConfig, given: Collection[str]) -> Reasoned:
    """Return the implied settings and the reason for each.

    Raises UsageError for flags that contradict each other.
    """
    found: Reasoned = {}
    if len(config.input_dim) == 3:
        found["image_size"] = config.input_dim[1], "--input_dim"
    for name, flag in FLAGS.items():
        if flag.only_reader != "criterion":  # `--set` may differ from a flag that has another reader too
            continue
        option = flag.readers["criterion"]
        value = config.set.get("criterion", {}).get(option)
        if not isinstance(value, int | float):
            continue
        if name in given and getattr(config, name) not in (None, value):
            raise UsageError(f"--{name} and --set criterion.{option} contradict each other")
        found[name] = value, f"--set criterion.{option}"
    if config.eval:
        return found
    found |= _schedule(config)
    if config.thresholds:
        found |= _of_thresholds(config, given)
    if config.fixed_layer not in (None, -1):  # a criterion with the option scores only this layer
        registry.check_name("criterions", config.prune_criterion)
        if "layer" in option_names(registry.get("criterions", config.prune_criterion)):
            found["set"] = {"criterion": {"layer": config.fixed_layer}}, "--fixed_layer"
    return found


def _schedule(config: RunConfig) -> Reasoned:
    """Return the schedule that reads a given flag, unless the schedule is given."""
    asked = {
        word: next((name for name in names if getattr(config, name) not in (None, ())), None)
        for word, names in FLAGS_OF.items()
    }
    if asked["rounds"] and asked["iterative"]:
        raise UsageError(
            f"--{asked['rounds']} is for --schedule rounds and --{asked['iterative']} for --schedule "
            "iterative: use flags of one schedule"
        )
    for word, name in asked.items():
        if name and config.schedule not in (None, word):
            raise UsageError(f"--{name} is for --schedule {word}, not {config.schedule}")
        if name and config.schedule is None:
            return {"schedule": (word, f"--{name} is for it")}
    return {}


def _of_thresholds(config: RunConfig, given: Collection[str]) -> Reasoned:
    """Return the limit, which is the last threshold, and the number of rounds, which is that of the thresholds."""
    thresholds = shares(config.thresholds)
    shown, last = ",".join(f"{threshold:g}" for threshold in thresholds), thresholds[-1]
    if config.n_rounds not in (None, len(thresholds)):
        raise UsageError(
            f"--n_rounds {config.n_rounds} and --thresholds {shown}, which are {len(thresholds)} rounds: "
            "give one of the two"
        )
    if "pruning_limit" in given and abs(config.pruning_limit - last) > 1e-9:
        raise UsageError(
            f"--pruning_limit {config.pruning_limit:g} and --thresholds {shown}, the last of which is the limit: "
            "give one of the two"
        )
    return because({"n_rounds": len(thresholds), "pruning_limit": last}, "--thresholds")
