"""Adapters: update the attributes of a module, such as `out_channels`, after a cut.

The input is a module and the kept indices of its tensors, the output its attributes.
Start with `base.py`.
"""
