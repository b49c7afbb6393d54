"""When a network is pruned: listeners of the training loop.

A schedule, a criterion and a trainer's events come in; a pruned network and a `PruneEvent` per step go out.
Start with `step.py`.
"""
