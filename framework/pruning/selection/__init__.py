"""Selection of the units to prune from scores and a budget.

Inputs are scores and a target; the output is one boolean tensor per group or weight (`Keep`). Counts are exact.
Start with `ranking.py`; `steps/step.py` applies it to weights, channels, or both.
"""
