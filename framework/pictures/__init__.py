"""Pictures of a network and of what was done to it: plots/*.png and TensorBoard."""
