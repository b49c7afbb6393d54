"""Scoring of weights and channels: the base class and the building blocks of criterions.

Inputs are a network, batches and a loss; the output is one score for each weight or channel. The network is
unchanged. Start with `criterion.py`.
"""
