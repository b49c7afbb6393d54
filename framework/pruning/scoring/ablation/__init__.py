"""The change of the loss when channels are removed.

Inputs are a network, batches and sets of channels; the output is one loss per set, computed from cached
activations. Start with `loss_change.py`.
"""
