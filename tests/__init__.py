"""The tests mirror the tree; networks.py, short_runs.py and command_line.py have what several of them share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
