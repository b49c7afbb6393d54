"""Settings of a run, without importing torch.

Flags and files are merged into a checked `RunConfig`, with notes on every automatic decision.
Start with `run_config.py`.
"""
