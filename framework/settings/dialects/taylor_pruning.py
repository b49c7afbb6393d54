"""The settings files of Taylor pruning (arXiv:1906.10771), read as our flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.framework.settings.run_config import FLAGS, RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import read_json
from secateur.utils.suggest import unknown

#: key -> (our setting, what their reader takes where the key is absent)
KEYS: dict[str, tuple[str, Any]] = {
    "method": ("pruning_method", 0),
    "frequency": ("frequency", 500),
    "prune_per_iteration": ("prune_per_iteration", 2),
    "maximum_pruning_iterations": ("maximum_pruning_iterations", 10000),
    "fixed_layer": ("fixed_layer", -1),
    "pruning_threshold": ("pruning_threshold", 100.0),
    "start_pruning_after_n_iterations": ("start_pruning_after_n_iterations", 0),
    "fixed_criteria": ("fixed_criteria", False),
    "pruning_momentum": ("pruning_momentum", 0.9),
    "flops_regularization": ("flops_regularization", 0.0),
    "prune_neurons_max": ("prune_neurons_max", 1),
    "group_size": ("group_size", 1),
    "l2_normalization_per_layer": ("l2_normalization_per_layer", False),
}
#: keys that do more than to set one thing
SPECIAL = (
    "use_momentum", "do_iterative_pruning", "rank_neurons_equally", "push_group_down", "starting_neuron", "seed",
)  # fmt: skip
#: keys that nothing needs here, and why
NEEDLESS = {
    "pruning_silent": "every step is reported in one line",
    "combination_ID": "Combinatorial tries all combinations",
}
SWITCHES = ("use_momentum", "do_iterative_pruning", "rank_neurons_equally", "push_group_down")
COMBINATORIAL = 50


def use_pruning_config(config: RunConfig) -> None:
    """Fill in what the file of `--pruning_config` says; what the user gave otherwise wins.

    UsageError, which names the file and the key, for what cannot be read, is unknown or of another type.
    """
    if config.pruning_config is None:
        return
    file, config.pruning_config = Path(config.pruning_config), None  # the settings say it all
    if config.schedule not in (None, "iterative"):
        raise UsageError(f"--pruning_config is for --schedule iterative, not {config.schedule}")
    values = read(file)
    taken = [f"{name} {value}" for name, value in settings_of(values, file).items() if _put(config, name, value)]
    config.notes.append(f"from {file}: {', '.join(taken) or 'nothing, all was given otherwise'}")
    config.notes += [f"{file}: {key} has no effect: {why}" for key, why in NEEDLESS.items() if values.get(key)]


def _put(config: RunConfig, name: str, value: Any) -> bool:
    """Set what was not given; whether it was not."""
    if name in config.given or name == "pruning_method" and "prune_criterion" in config.given:
        return False
    if name == "size":
        config.set.setdefault("criterion", {}).setdefault("size", value)
    else:
        setattr(config, name, value)
        config.given.add(name)
    return True


def read(file: Path) -> dict[str, Any]:
    """The keys and values of a file, all known."""
    values = read_json(file, where=f"--pruning_config {file}")
    if not isinstance(values, dict):
        raise UsageError(f"--pruning_config {file} must hold keys and values, found {type(values).__name__}")
    known = (*KEYS, *SPECIAL, *NEEDLESS)
    for key in values:
        if key not in known:
            raise UsageError(f"--pruning_config {file}: {unknown('key', key, known)}")
    for key in SWITCHES:
        if not isinstance(values.get(key, False), bool):
            raise UsageError(f"--pruning_config {file}: {key} must be true or false, got {values[key]!r}")
    return values


def settings_of(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Our settings for the keys of a file, with their reader's defaults."""
    found: dict[str, Any] = {"schedule": "iterative"}
    for key, (name, default) in KEYS.items():
        found[name] = _typed(name, values.get(key, default), f"--pruning_config {file}: {key}")
    if values.get("push_group_down"):
        raise UsageError(f"--pruning_config {file}: push_group_down true is not supported: leave it out")
    if not values.get("use_momentum", True):
        found["pruning_momentum"] = 0.0
    if not values.get("do_iterative_pruning", True):
        found["maximum_pruning_iterations"] = 1
    if values.get("rank_neurons_equally", False):
        found["scope"] = "layer"
    if "seed" in values:
        found["seed"] = _typed("seed", values["seed"], f"--pruning_config {file}: seed")
    return found | _starting(values, file)


def _starting(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """How many channels count as gone already; for combinations, of how many channels they are."""
    start = _typed(
        "prune_neurons_max", values.get("starting_neuron", 0), f"--pruning_config {file}: starting_neuron"
    )
    if not start:
        return {}
    if values.get("method") == COMBINATORIAL:
        return {"size": start}
    raise UsageError(
        f"--pruning_config {file}: starting_neuron {start}: what is gone already is counted, leave it 0"
    )


def _typed(name: str, value: Any, where: str) -> Any:
    """The value in the setting's type and limits."""
    flag = FLAGS[name]
    if isinstance(value, bool) != (flag.type is bool):
        raise UsageError(f"{where} must be {'true or false' if flag.type is bool else 'a number'}, got {value!r}")
    found = flag.parse(value, where)
    try:
        flag.check(found)
    except UsageError as error:
        raise UsageError(f"{where}{str(error).removeprefix(f'--{name}')}") from error
    return found


#: ids of pruning methods that users of Taylor pruning know, and the criterion behind each
METHODS = {
    0: "TaylorWeight",
    1: "RandomChannel",
    2: "WeightNorm",
    3: "WeightAbs",
    6: "TaylorOutput",
    10: "OBD",
    11: "TaylorGateSO",
    22: "TaylorGate",
    23: "TaylorGateFG",
    30: "BNWeight",
    31: "BNTaylor",
    40: "Oracle",
    50: "Combinatorial",
}


def use_pruning_method(config: RunConfig) -> None:
    """`--pruning_method` is another way to say `--prune_criterion`; UsageError for an id that nothing has."""
    method, config.pruning_method = config.pruning_method, None
    if method is None:
        return
    if method not in METHODS:
        known = ", ".join(f"{number} {name}" for number, name in METHODS.items())
        raise UsageError(f"--pruning_method {method}: no method has this id (one of {known})")
    name = METHODS[method]
    others = config.from_flags if "pruning_method" in config.from_flags else config.given
    if "prune_criterion" in others and config.prune_criterion != name:
        raise UsageError(
            f"--pruning_method {method} is {name}, and --prune_criterion says {config.prune_criterion}: give one"
        )
    config.prune_criterion = name
    config.given.add("prune_criterion")
    if "pruning_method" in config.from_flags:
        config.from_flags.add("prune_criterion")
    config.notes.append(f"--pruning_method {method} is {name}")
