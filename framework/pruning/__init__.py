"""How a network is pruned, from scores to smaller tensors.

`scoring/` rates units, `selection/` picks those that are pruned, `surgery/` removes them, `steps/` does it during
training. `channels/` finds the tensor slices that belong together, `adapters/` adapt modules that shrink.
Start with `steps/step.py`.
"""
