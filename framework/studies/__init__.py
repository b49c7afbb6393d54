"""Experiments on finished networks.

Evaluates a trained network on its data, with tables and figures as output. `oracle/` compares the scores of
criterions with the measured effect of removing each channel, `robustness/` attacks and corrupts the test images.
Start with `oracle/study.py`.
"""
