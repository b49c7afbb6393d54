"""Layers with trainable gates.

The input is a network, the output the same network with gates on its weights or norms; after training the gates
are removed again. Start with `hard_concrete.py`.
"""
