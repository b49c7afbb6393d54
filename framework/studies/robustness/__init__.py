"""Accuracy under attacks and corruptions.

A network and test images come in; accuracies by epsilon, examples and sanity checks of the attack go out.
Start with `assess.py`.
"""
