"""Questions about any `nn.Module`: layers, size, latency, masks, lineage.

A network comes in; numbers, names and tensors go out. Nothing here knows criterions or groups.
Start with `layers.py`.
"""
