"""How a network is pruned, from scores to smaller tensors.

`scoring/` rates units, `selection/` picks those that are pruned, `surgery/` removes them, `steps/` does it during
training. `channels/` says which tensor slices belong together, `adapters/` what a module must change when it shrinks.
Start with `steps/step.py`.
"""
