"""The default command: train or evaluate."""

from __future__ import annotations

from pathlib import Path

from secateur.framework.commands.evaluate import evaluate
from secateur.framework.commands.machine import prepare_machine
from secateur.framework.commands.train import train
from secateur.framework.reporting.console import Console
from secateur.framework.settings.run_config import RunConfig


def run(config: RunConfig, command: str) -> Path:
    """Run the config and return the run folder; raise UsageError for bad input before anything is written."""
    console = Console(config.progress)
    try:
        prepare_machine(config)
        folder = (evaluate if config.eval else train)(config, command, console)
        console.say(str(folder.path))
    finally:
        console.close()
    return folder.path
