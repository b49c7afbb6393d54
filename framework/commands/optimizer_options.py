"""Options of the optimizer, which are tested on a small tensor before anything is loaded or written."""

from typing import Any

import torch
from torch import nn

from secateur.framework.plugins.registry import build, option_names, registry
from secateur.framework.settings.decisions import MEASURED, Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.suggest import one_line

#: options that torch does not combine with fused
OTHER_STEPS = ("foreach", "differentiable")
TRIAL_RATE, TRIAL_GRADIENT, TRIAL_STEPS = 1e-3, 0.1, 3


def with_fused(config: RunConfig, decisions: Decisions) -> RunConfig:
    """Return the settings with "fused" on if torch supports it for this optimizer, its options and the device."""
    able = "fused" in option_names(registry.get("optimizers", config.optimizer))
    if config.fused == "on" and not able:
        raise UsageError(f"--fused on: {config.optimizer} has no fused step")
    if config.fused != "auto":
        return config
    known_device = torch.device(config.device).type in ("cpu", "cuda")
    fused = able and known_device and not any(map(config.options("optimizer").get, OTHER_STEPS))
    return decisions.choose(
        config, MEASURED, f"{config.optimizer} on {config.device}", fused="on" if fused else "off"
    )


def optimizer_options(config: RunConfig) -> dict[str, Any]:
    """Return the options of the optimizer except its parameters."""
    return config.options("optimizer") | ({"fused": True} if config.fused == "on" else {})


def try_optimizer(config: RunConfig) -> None:
    """Take steps on a small tensor; raise UsageError, naming the options, if they fail or are not finite.

    torch checks some options in the constructor, some in the first step, and some not at all.
    """
    options = optimizer_options(config) | {"lr": TRIAL_RATE, "weight_decay": 0.0}
    given = ", ".join(
        f"--set optimizer.{name}={one_line(value, 60)}"
        for name, value in sorted(config.set.get("optimizer", {}).items())
    )
    where = f"{given or '--optimizer'}: {config.optimizer}"
    parameter = nn.Parameter(torch.ones(2, 2, device=config.device))
    try:
        optimizer = build("optimizers", config.optimizer, params=[parameter], **options)
        for _ in range(TRIAL_STEPS):
            parameter.grad = torch.full_like(parameter, TRIAL_GRADIENT)
            optimizer.step()
    except UsageError as error:
        raise UsageError(f"{given}: {error}" if given else str(error)) from error
    except Exception as error:  # torch passes on any exception of its arithmetic
        raise UsageError(f"{where} cannot step ({one_line(error, 160)})") from error
    if not bool(parameter.isfinite().all()):
        raise UsageError(f"{where} gives weights that are not finite")
