"""What a user sees of a run: console, metrics.jsonl, report.json, plots.

Events and measurements come in; lines, files and figures go out. Nothing here changes a network.
Start with `report.py`.
"""
