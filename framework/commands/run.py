"""The commands that write a run folder: train, evaluate, or compare criterions with the oracle."""

from pathlib import Path

from secateur.framework.commands.evaluate import evaluate
from secateur.framework.commands.machine import prepare_machine
from secateur.framework.commands.oracle import compare
from secateur.framework.commands.train import train
from secateur.framework.reporting.console import Console
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.oracle_config import StudyConfig
from secateur.framework.settings.run_config import RunConfig


def run(config: RunConfig, decisions: Decisions, command: str) -> Path:
    """Run the config and return the run folder; raise UsageError for bad input before anything is written."""
    console = Console(config.progress)
    try:
        config = prepare_machine(config, decisions)
        if isinstance(config, StudyConfig):
            folder = compare(config, decisions, command, console)
        else:
            folder = (evaluate if config.eval else train)(config, decisions, command, console)
        console.say(str(folder.path))
    finally:
        console.close()
    return folder.path
