"""Files of a run: checkpoints, run folders, snapshots.

Networks are saved to and loaded from safetensors files, without pickle. `locate.py` finds earlier runs.
Start with `checkpoint.py`.
"""
