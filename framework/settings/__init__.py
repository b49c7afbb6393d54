"""What the user asked for; imports no torch.

Flags and files come in; a checked `RunConfig` with notes on every decision goes out.
Start with `run_config.py`.
"""
