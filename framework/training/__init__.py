"""The training loop, its events and its listeners.

Parts (network, optimizer, loaders, loss) come in; a trained network and events go out. The loop knows nothing of
pruning: whatever happens around it is a listener.
Start with `trainer.py`.
"""
