"""The training loop, its events and its listeners.

A trainer takes a network, an optimizer, loaders and a loss, trains the network and calls hooks. Pruning, logging
and saving are listeners of these hooks and not part of the loop.
Start with `trainer.py`.
"""
