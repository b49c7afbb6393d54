"""Commands of the command line, one file per command.

A command takes settings and writes a run folder or prints tables. `prepare.py` converts flags to checked settings,
`assemble.py` builds network, data, optimizer and pruner from them, `train.py` and `evaluate.py` run them. Only
`main.py` imports this package.
Start with `run.py`.
"""
