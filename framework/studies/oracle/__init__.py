"""Correlation of the scores of criterions with the measured effect of removing each channel.

Takes a network, batches and criterions; returns measured changes of the loss and correlations with the scores.
Start with `study.py`.
"""
