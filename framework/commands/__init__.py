"""What the command line can do, one file a command.

Settings come in, a run folder or printed tables go out. `prepare.py` turns flags into checked settings,
`assemble.py` builds network, data, optimizer and pruner from them, `train.py` and `evaluate.py` run. Only
`main.py` imports this room.
Start with `run.py`.
"""
