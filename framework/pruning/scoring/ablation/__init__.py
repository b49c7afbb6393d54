"""The change of the loss when channels are removed.

A network, batches and sets of channels come in; one loss a set goes out, from cached activations.
Start with `loss_change.py`.
"""
