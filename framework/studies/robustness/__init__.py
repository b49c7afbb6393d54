"""Accuracy under attacks and corruptions.

Takes a network and test images; returns accuracies by epsilon, examples and sanity checks of the attacks.
Start with `assess.py`.
"""
