"""Files of a run: checkpoints, run folders, snapshots.

A network comes in, a safetensors file goes out, and the reverse; no pickle. `locate.py` finds earlier runs.
Start with `checkpoint.py`.
"""
