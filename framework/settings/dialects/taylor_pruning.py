"""Translation of the settings files of Taylor pruning (arXiv:1906.10771)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.framework.settings.run_config import FLAGS, RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import read_json
from secateur.utils.suggest import unknown

#: key -> (setting, default of the original reader)
CONFIG_KEYS: dict[str, tuple[str, Any]] = {
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
#: keys that need special handling
SPECIAL = (
    "use_momentum", "do_iterative_pruning", "rank_neurons_equally", "push_group_down", "starting_neuron", "seed",
)  # fmt: skip
#: keys without effect, with the reason
NEEDLESS_KEYS = {
    "pruning_silent": "every step is reported in one line",
    "combination_ID": "Combinatorial tries all combinations",
}
CONFIG_SWITCHES = ("use_momentum", "do_iterative_pruning", "rank_neurons_equally", "push_group_down")
COMBINATORIAL = 50


def use_pruning_config(config: RunConfig) -> None:
    """Apply the file of `--pruning_config`; other settings that the user gave take precedence.

    Raises UsageError, naming the file and the key, for unreadable files, unknown keys and wrong types.
    """
    if config.pruning_config is None:
        return
    file, config.pruning_config = Path(config.pruning_config), None  # its values are in the other settings
    if config.schedule not in (None, "iterative"):
        raise UsageError(f"--pruning_config is for --schedule iterative, not {config.schedule}")
    values = read(file)
    taken = [f"{name} {value}" for name, value in settings_of(values, file).items() if _put(config, name, value)]
    config.notes.append(f"from {file}: {', '.join(taken) or 'nothing, since all settings were given'}")
    config.notes += [
        f"{file}: {key} has no effect: {reason}" for key, reason in NEEDLESS_KEYS.items() if values.get(key)
    ]


def _put(config: RunConfig, name: str, value: Any) -> bool:
    """Set a setting unless it was given; return whether it was set."""
    if name in config.given or name == "pruning_method" and "prune_criterion" in config.given:
        return False
    if name == "size":
        config.set.setdefault("criterion", {}).setdefault("size", value)
    else:
        setattr(config, name, value)
        config.given.add(name)
    return True


def read(file: Path) -> dict[str, Any]:
    """Return the keys and values of a file; raise UsageError for unknown keys."""
    values = read_json(file, where=f"--pruning_config {file}")
    if not isinstance(values, dict):
        raise UsageError(f"--pruning_config {file} must contain keys and values, found {type(values).__name__}")
    known = (*CONFIG_KEYS, *SPECIAL, *NEEDLESS_KEYS)
    for key in values:
        if key not in known:
            raise UsageError(f"--pruning_config {file}: {unknown('key', key, known)}")
    for key in CONFIG_SWITCHES:
        if not isinstance(values.get(key, False), bool):
            raise UsageError(f"--pruning_config {file}: {key} must be true or false, got {values[key]!r}")
    return values


def settings_of(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the settings for the keys of a file, with the defaults of the original reader."""
    found: dict[str, Any] = {"schedule": "iterative"}
    for key, (name, default) in CONFIG_KEYS.items():
        found[name] = _typed(name, values.get(key, default), f"--pruning_config {file}: {key}")
    if values.get("push_group_down"):
        raise UsageError(f"--pruning_config {file}: push_group_down true is not supported: remove it")
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
    """Translate starting_neuron, which is the size of the combinations for the method Combinatorial."""
    start = _typed(
        "prune_neurons_max", values.get("starting_neuron", 0), f"--pruning_config {file}: starting_neuron"
    )
    if not start:
        return {}
    if values.get("method") == COMBINATORIAL:
        return {"size": start}
    raise UsageError(
        f"--pruning_config {file}: starting_neuron {start}: pruned channels are counted automatically, leave it 0"
    )


def _typed(name: str, value: Any, where: str) -> Any:
    """Return the value in the type of the setting; raise UsageError if it is out of range."""
    flag = FLAGS[name]
    if isinstance(value, bool) != (flag.type is bool):
        raise UsageError(f"{where} must be {'true or false' if flag.type is bool else 'a number'}, got {value!r}")
    found = flag.parse(value, where)
    try:
        flag.check(found)
    except UsageError as error:
        raise UsageError(f"{where}{str(error).removeprefix(f'--{name}')}") from error
    return found


#: id of a method of Taylor pruning -> criterion
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
    """Translate `--pruning_method` to `--prune_criterion`; raise UsageError for an unknown id."""
    method, config.pruning_method = config.pruning_method, None
    if method is None:
        return
    if method not in METHODS:
        known = ", ".join(f"{number} {name}" for number, name in METHODS.items())
        raise UsageError(f"--pruning_method {method} is unknown (one of {known})")
    name = METHODS[method]
    others = config.from_flags if "pruning_method" in config.from_flags else config.given
    if "prune_criterion" in others and config.prune_criterion != name:
        raise UsageError(
            f"--pruning_method {method} is {name}, but --prune_criterion is {config.prune_criterion}: give one"
        )
    config.prune_criterion = name
    config.given.add("prune_criterion")
    if "pruning_method" in config.from_flags:
        config.from_flags.add("prune_criterion")
    config.notes.append(f"--pruning_method {method} is {name}")
