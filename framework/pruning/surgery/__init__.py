"""How units are removed.

Groups and a `Keep` come in; the network has smaller tensors, and so have the optimizer's state and other mappings.
Start with `cutting.py`.
"""
