"""Notes on flags that have no effect in a run."""

from collections.abc import Collection

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.run_config import FLAGS, KINDS, PLUGIN_OF, PRESETS, RunConfig

#: groups of options whose flags are refused, not ignored, if the plug-in lacks the option
STRICT = ("model", "criterion", "tester")


def unused_flags(config: RunConfig, decisions: Decisions, several_steps: bool) -> list[str]:
    """Return one line for each flag that has no effect on a training run.

    `several_steps`: whether the criterion uses `--snip_steps`. Only flags of the command line are considered: a
    config file may be meant for several runs, or be the record of one.
    """
    given = [name for name in FLAGS if name in decisions.flags]
    lines = [_line(name, f"{unread} does not read it") for name in given if (unread := _not_read_by(config, name))]
    for name in given:
        needs = FLAGS[name].needs
        if needs is not None and not config.has_effect(name):
            values = "" if needs[1] == (True,) else f" {' or '.join(map(str, needs[1]))}"
            lines.append(_line(name, f"it is for --{needs[0]}{values}"))
    criterion = registry.describe("criterions", config.prune_criterion)
    if not criterion.prunes:
        gates = f"{config.train_scheme} prunes only by gates"
        reason = gates if config.owns_gates else f"{criterion.name} prunes nothing"
        lines += [_line(name, reason) for name in given if FLAGS[name].phase == "pruning"]
    elif not several_steps and "snip_steps" in given:
        lines.append(_line("snip_steps", f"{criterion.name} does not prune in such steps"))
    return lines


def _not_read_by(config: RunConfig, name: str) -> str | None:
    """Return the plug-in that is the only reader of a flag and lacks the option; None if the flag is read."""
    group = FLAGS[name].only_reader
    if group not in PLUGIN_OF or group in STRICT or FLAGS[name].needs:
        return None
    field = PLUGIN_OF[group]
    plugin: str = getattr(config, field)
    known = option_names(registry.get(KINDS[field], plugin))
    return None if FLAGS[name].readers[group] in known else plugin


def unused_presets(config: RunConfig, before: bool) -> list[str]:
    """Return one line for a preset without penalty; `before`: whether the network is pruned before training."""
    lines = []
    for preset, plugins in PRESETS.items():
        if not getattr(config, preset) or "train_scheme" in plugins:
            continue
        if not registry.derives("losses", config.loss, plugins["loss"]):
            lines.append(f"--{preset} adds no penalty: --loss {config.loss} has none")
        elif before:
            lines.append(
                f"--{preset} adds no penalty: it ends with the first pruning step, and {config.prune_criterion} "
                "prunes before training"
            )
    return lines


def unused_in_tests(flags: Collection[str]) -> list[str]:
    """Return one line for each of the flags that has no effect on an evaluation."""
    ignored = [name for name, flag in FLAGS.items() if flag.phase and name in flags]
    return [_line(name, "--eval only tests a checkpoint") for name in ignored]


def _line(name: str, reason: str) -> str:
    return f"--{name} has no effect: {reason}"
