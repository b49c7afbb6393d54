"""The machinery of the regularisers in losses/: measures of weights, groups of weights, and the strength.

The input are the weights of a network, the output is one scalar whose gradient is in closed form. A regulariser of
losses/ chooses a measure.
Start with `regulariser.py`.
"""
