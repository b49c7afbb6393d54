"""Output of a run: console, metrics.jsonl, report.json, plots.

Converts events and measurements to lines, files and figures. Nothing in this package changes a network.
Start with `report.py`.
"""
