"""Layers with trainable gates.

A network comes in; the same network with gates on its weights or norms goes out, and after training one without
them.
Start with `hard_concrete.py`.
"""
