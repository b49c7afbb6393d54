"""When to prune, as plain values.

A number of epochs and a target come in; a target for each moment goes out.
Start with `base.py`.
"""
