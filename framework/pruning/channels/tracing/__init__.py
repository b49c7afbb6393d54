"""Tracing of channel labels through the operations of a forward pass.

The input is a network and a sample, the output are the slices of tensors that have the same label, which become
groups.
Start with `tracer.py`.
"""
