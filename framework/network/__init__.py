"""Properties of any `nn.Module`: layers, size, latency, masks, lineage.

The input is a network, the output are numbers, names and tensors. This package is independent of criterions and
channel groups.
Start with `layers.py`.
"""
