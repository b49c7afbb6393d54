"""Flags that nothing in this run reads: each gets a line, so that nobody waits for an effect."""

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
#: flags of pruning, which a criterion that prunes reads
OF_PRUNING = (
    "pruning_limit", "schedule", "prune_delay", "prune_freq", "snip_steps", "budget", "scope", "min_channels",
    "keep_share", "round_to", "attention", "inexact", "fold", "masking", "outer_layer_pruning", "protect",
)  # fmt: skip
#: flags that a test of a checkpoint reads none of, beside those of pruning
OF_TRAINING = (
    "epochs", "learning_rate", "momentum", "l2_reg", "grad_clip", "grad_noise", "lr_schedule", "lr_step",
    "lr_milestones", "lr_gamma", "max_training_minutes", "eval_freq", "save_freq", "l0_reg", "beta_ema",
)  # fmt: skip


def unused_flags(config: RunConfig, prunes: bool, several_steps: bool) -> list[str]:
    """One line for each given flag that a training run does not read.

    `prunes`: whether its criterion ever does; `several_steps`: whether that takes `--snip_steps`. Only the command
    line counts: a config file is made for more than one run, or is the record of one.
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
        why = "--l0 prunes by gates alone" if config.l0 else f"{config.prune_criterion} prunes nothing"
        lines += [_line(name, why) for name in OF_PRUNING if name in config.from_flags]
    elif not several_steps and "snip_steps" in config.from_flags:
        lines.append(_line("snip_steps", f"{config.prune_criterion} does not prune in such steps"))
    return lines


def unused_modes(config: RunConfig, before: bool) -> list[str]:
    """One line for a mode whose penalty another flag took away; `before`: whether training begins pruned."""
    lines = []
    for mode, chosen in MODES.items():
        if mode == "l0" or not getattr(config, mode):
            continue
        if not registry.derives("losses", config.loss, chosen["loss"]):
            lines.append(f"--{mode} adds no penalty: --loss {config.loss} has none")
        elif before:
            who = config.prune_criterion
            lines.append(
                f"--{mode} adds no penalty: it ends with the first pruning, and {who} prunes before training"
            )
    return lines


def unused_in_tests(config: RunConfig) -> list[str]:
    """One line for each flag of training or pruning on the command line of an evaluation."""
    return [_line(name, "--eval tests a checkpoint as it is") for name in (*OF_TRAINING, *OF_PRUNING)
            if name in config.from_flags]  # fmt: skip


def _line(name: str, why: str) -> str:
    return f"--{name} has no effect: {why}"
