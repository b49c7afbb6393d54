"""Figures of a run.

Draws recorded rows, networks and scores as PNG files and TensorBoard images.
Start with `run.py`.
"""
