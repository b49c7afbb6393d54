"""Settings with a meaning beyond their own: modes that choose loss and criterion, and rates of the original."""

from __future__ import annotations

from framework.config import RunConfig
from utils.errors import UsageError

#: flags that choose a loss and more; at most one of them
MODES = ("l0", "hoyer_square", "group_hoyer_square")


def check_modes(config: RunConfig) -> None:
    """UsageError for two modes at once, and for weights that should grow again."""
    chosen = [name for name in MODES if getattr(config, name, False)]
    if len(chosen) > 1:
        flags = " and ".join(f"--{name}" for name in chosen)
        raise UsageError(f"{flags} exclude each other: each chooses the loss")
    if config.growing_rate > 0:
        raise UsageError(f"--growing_rate {config.growing_rate:g}: weights never grow again, only 0 is allowed")


def use_pruning_rate(config: RunConfig) -> None:
    """`--pruning_rate` alone is UnstructuredRandom's `--pruning_limit`; elsewhere a note says it does nothing."""
    rate, config.pruning_rate = config.pruning_rate, None
    if rate is None:
        return
    if config.prune_criterion == "UnstructuredRandom" and "pruning_limit" not in config.given:
        config.pruning_limit = rate
        config.given.add("pruning_limit")
        config.notes.append(f"--pruning_rate {rate:g} is taken as --pruning_limit {rate:g}")
    else:
        config.notes.append(f"--pruning_rate has no effect: --pruning_limit {config.pruning_limit:g} says how far")
