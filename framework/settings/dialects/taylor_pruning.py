"""Translation of the settings files of Taylor pruning (arXiv:1906.10771)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.framework.settings.dialects.translation import Settings, Translation, word
from secateur.framework.settings.field import Flag
from secateur.framework.settings.run_config import FLAGS as OURS
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import read_json
from secateur.utils.suggest import unknown

#: key, which is the setting -> default of the original reader
CONFIG_KEYS: dict[str, Any] = {
    "frequency": 500,
    "prune_per_iteration": 2,
    "maximum_pruning_iterations": 10000,
    "fixed_layer": -1,
    "pruning_threshold": 100.0,
    "start_pruning_after_n_iterations": 0,
    "fixed_criteria": False,
    "pruning_momentum": 0.9,
    "flops_regularization": 0.0,
    "prune_neurons_max": 1,
    "group_size": 1,
    "l2_normalization_per_layer": False,
}
CONFIG_SWITCHES = ("use_momentum", "do_iterative_pruning", "rank_neurons_equally", "push_group_down")
#: keys that need special handling
SPECIAL = ("method", *CONFIG_SWITCHES, "starting_neuron", "seed")
#: keys without effect, with the reason
NEEDLESS_KEYS = {
    "pruning_silent": "every step is reported in one line",
    "combination_ID": "Combinatorial tries all combinations",
}
COMBINATORIAL = 50
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

METHOD = Flag("pruning_method", int, 0, "", "")
IDS = f"--prune_criterion by its id in Taylor pruning: {', '.join(map(str, METHODS))}"
SETTINGS = "JSON file of Taylor pruning with settings of --schedule iterative"
FLAGS: dict[str, Flag] = {
    "pruning_method": word("pruning_method", IDS, metavar="ID"),
    "pruning_config": word("pruning_config", SETTINGS, metavar="FILE", path="read"),
}


def translate(flags: Mapping[str, Any], file: Mapping[str, Any]) -> Translation:
    """Translate the flags of Taylor pruning, see `Dialect.translate`.

    The settings of the file of `--pruning_config` are defaults, so that all given settings take precedence.
    """
    ours = {name: value for name, value in flags.items() if name not in FLAGS}
    defaults: Settings = {}
    notes = []
    why = ""
    if "pruning_method" in flags:
        method = METHOD.parse(flags["pruning_method"])
        name = _criterion(method)
        if ours.setdefault("prune_criterion", name) != name:
            other = ours["prune_criterion"]
            raise UsageError(f"--pruning_method {method} is {name}, but --prune_criterion is {other}: give one")
        notes.append(f"--pruning_method {method} is {name}")
    if "pruning_config" in flags:
        path = Path(flags["pruning_config"])
        schedule = ours.get("schedule", file.get("schedule"))
        if schedule not in (None, "iterative"):
            raise UsageError(f"--pruning_config is for --schedule iterative, not {schedule}")
        values = read(path)
        defaults, why = settings_of(values, path), f"from {path}"
        notes += [
            f"{path}: {key} has no effect: {reason}" for key, reason in NEEDLESS_KEYS.items() if values.get(key)
        ]
    return Translation(ours, defaults, why, notes)


def _criterion(method: int) -> str:
    if method not in METHODS:
        known = ", ".join(f"{number} {name}" for number, name in METHODS.items())
        raise UsageError(f"--pruning_method {method} is unknown (one of {known})")
    return METHODS[method]


def read(file: Path) -> dict[str, Any]:
    """Return the keys and values of a file; raise UsageError for unknown keys."""
    values = read_json(file)
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
    where = f"--pruning_config {file}"
    method = _criterion(_typed(METHOD, values.get("method", METHOD.default), f"{where}: method"))
    found: dict[str, Any] = {"schedule": "iterative", "prune_criterion": method}
    for key, default in CONFIG_KEYS.items():
        found[key] = _typed(OURS[key], values.get(key, default), f"{where}: {key}")
    if values.get("push_group_down"):
        raise UsageError(f"{where}: push_group_down true is not supported: remove it")
    if not values.get("use_momentum", True):
        found["pruning_momentum"] = 0.0
    if not values.get("do_iterative_pruning", True):
        found["maximum_pruning_iterations"] = 1
    if values.get("rank_neurons_equally", False):
        found["scope"] = "layer"
    if "seed" in values:
        found["seed"] = _typed(OURS["seed"], values["seed"], f"{where}: seed")
    return found | _starting(values, file)


def _starting(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Translate starting_neuron, which is the size of the combinations for the method Combinatorial."""
    most = OURS["prune_neurons_max"]
    start = _typed(most, values.get("starting_neuron", 0), f"--pruning_config {file}: starting_neuron")
    if not start:
        return {}
    if values.get("method") == COMBINATORIAL:
        return {"set": {"criterion": {"size": start}}}
    raise UsageError(
        f"--pruning_config {file}: starting_neuron {start}: pruned channels are counted automatically, leave it 0"
    )


def _typed(flag: Flag, value: Any, where: str) -> Any:
    """Return the value in the type of the setting; raise UsageError if it is out of range."""
    if isinstance(value, bool) != (flag.type is bool):
        raise UsageError(f"{where} must be {'true or false' if flag.type is bool else 'a number'}, got {value!r}")
    found = flag.parse(value, where)
    flag.check(found, where)
    return found
