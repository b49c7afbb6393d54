"""Layers with trainable gates.

A network comes in; the same network with gates on its weights or norms goes out, and one without them after training.
Start with `hard_concrete.py`.
"""
