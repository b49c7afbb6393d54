"""Figures of a run.

Recorded rows, networks and scores come in; PNG files and TensorBoard images go out.
Start with `run.py`.
"""
