"""Experiments on finished networks.

A trained network and its data come in, a table with pictures goes out. `oracle/` compares the scores of criterions
with the measured effect of removing each channel, `robustness/` attacks and corrupts the test images.
Start with `oracle/study.py`.
"""
