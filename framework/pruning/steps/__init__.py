"""Pruning steps: listeners of the training loop that prune the network on schedule.

Inputs are a schedule, a criterion and the events of a trainer; outputs are a pruned network and a `PruneEvent` per
step.
Start with `step.py`.
"""
