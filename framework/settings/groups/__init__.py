"""Groups of settings: one frozen dataclass per group, one field per flag, with all facts about the flag.

`run_config.py` joins them to the settings of a run. Start with `what.py`.
"""
