"""What a module class must change when it shrinks.

A module and the kept indices of its tensors come in; attributes such as `out_channels` follow.
Start with `base.py`.
"""
