"""Gradients and curvature of gates on channels.

A gate multiplies the output of a channel and equals one. Its gradient is computed without changing the network.
Start with `gradients.py`.
"""
