"""Removal of channels from a network.

The input is a network, its groups and a `Keep`; the network's tensors become smaller, and so do the optimizer's
state and other mappings.
Start with `cutting.py`.
"""
