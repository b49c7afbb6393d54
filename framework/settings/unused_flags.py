"""Notes on flags that have no effect in a run."""

from __future__ import annotations

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.settings.presets import MODES
from secateur.framework.settings.run_config import KINDS, RunConfig

#: flags that only a plug-in with an option of this name reads
READ_BY = {
    "loss": ("l1_reg", "lp_reg", "label_smoothing", "hoyer_reg"),
    "train_scheme": ("l0_reg", "beta_ema"),
}
#: flags that are read with one value of another flag
NEEDS = {
    "momentum": ("optimizer", ("SGD",)),
    "lr_step": ("lr_schedule", ("step",)),
    "lr_milestones": ("lr_schedule", ("multistep",)),
    "lr_gamma": ("lr_schedule", ("step", "multistep")),
    "track_batches": ("track_importance", (True,)),
    "alpha": ("track_importance", (True,)),
}
#: flags of pruning, which are read if the criterion prunes
OF_PRUNING = (
    "pruning_limit", "schedule", "prune_delay", "prune_freq", "snip_steps", "budget", "scope", "min_channels",
    "keep_share", "round_to", "attention", "inexact", "fold", "masking", "outer_layer_pruning", "protect",
)  # fmt: skip
#: flags, besides those of pruning, that have no effect on the evaluation of a checkpoint
OF_TRAINING = (
    "epochs", "learning_rate", "momentum", "l2_reg", "grad_clip", "grad_noise", "lr_schedule", "lr_step",
    "lr_milestones", "lr_gamma", "max_training_minutes", "eval_freq", "save_freq", "l0_reg", "beta_ema",
)  # fmt: skip


def unused_flags(config: RunConfig, prunes: bool, several_steps: bool) -> list[str]:
    """Return one line for each flag that has no effect on a training run.

    `prunes`: whether the criterion prunes; `several_steps`: whether it uses `--snip_steps`. Only flags of the
    command line are considered: a config file may be meant for several runs, or be the record of one.
    """
    lines = []
    for field, names in READ_BY.items():
        plugin = getattr(config, field)
        known = option_names(registry.get(KINDS[field], plugin))
        lines += [_line(name, f"{plugin} does not read it") for name in names
                  if name not in known and name in config.from_flags]  # fmt: skip
    for name, (other, values) in NEEDS.items():
        if getattr(config, other) not in values and name in config.from_flags:
            lines.append(_line(name, f"it is for --{other} {' or '.join(map(str, values))}"))
    if not prunes:
        reason = "--l0 prunes only by gates" if config.l0 else f"{config.prune_criterion} prunes nothing"
        lines += [_line(name, reason) for name in OF_PRUNING if name in config.from_flags]
    elif not several_steps and "snip_steps" in config.from_flags:
        lines.append(_line("snip_steps", f"{config.prune_criterion} does not prune in such steps"))
    return lines


def unused_modes(config: RunConfig, before: bool) -> list[str]:
    """Return one line for a mode without penalty; `before`: whether the network is pruned before training."""
    lines = []
    for mode, chosen in MODES.items():
        if mode == "l0" or not getattr(config, mode):
            continue
        if not registry.derives("losses", config.loss, chosen["loss"]):
            lines.append(f"--{mode} adds no penalty: --loss {config.loss} has none")
        elif before:
            lines.append(
                f"--{mode} adds no penalty: it ends with the first pruning step, and {config.prune_criterion} "
                "prunes before training"
            )
    return lines


def unused_in_tests(config: RunConfig) -> list[str]:
    """Return one line for each flag of training or pruning that has no effect on an evaluation."""
    return [_line(name, "--eval only tests a checkpoint") for name in (*OF_TRAINING, *OF_PRUNING)
            if name in config.from_flags]  # fmt: skip


def _line(name: str, reason: str) -> str:
    return f"--{name} has no effect: {reason}"
