"""Pruning schedules as plain values.

A schedule maps a number of epochs and a final sparsity to the targets of each moment of a run.
Start with `base.py`.
"""
