"""Follow labels of channels through the operations of a forward pass.

A network comes in; slices of tensors that carry the same label go out, to be joined to groups.
Start with `tracer.py`.
"""
