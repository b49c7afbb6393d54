"""The commands and snippets of a page, and the flags that make a run short."""

import re
from pathlib import Path

# the same command on less: the page's own flags come first, the last of two equal flags wins
SHORT = ["--epochs", "4", "--limit_train_batches", "1", "--limit_test_batches", "1", "--batch_size", "4"]
NARROW = ["--threads", "1"]
PLAIN = [*NARROW, "--plot_weights_freq", "0"]  # pictures take most of so short a run


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of one language, "" for those of none."""
    return [code for name, code in re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL) if name == language]


def command_lines(text: str) -> list[str]:
    """Every line of the bash blocks that is a command, without its comment."""
    lines = [line.split("  #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def run_folder(folder: Path, printed: str) -> Path:
    """The run folder whose path is the last line that a run printed."""
    return folder / printed.strip().splitlines()[-1]
