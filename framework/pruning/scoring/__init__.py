"""How units are scored: the toolbox of criterions.

A network, batches and a loss come in; one score for each weight or channel goes out, and the network is unchanged.
Start with `criterion.py`.
"""
