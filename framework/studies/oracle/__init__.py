"""How well criterions estimate what removing a channel costs.

A network, batches and criterions come in; measured changes of the loss and correlations with the scores go out.
Start with `study.py`.
"""
