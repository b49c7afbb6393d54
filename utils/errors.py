"""The two ways a run can go wrong; `main.py` turns them into one line and an exit code."""


class UsageError(ValueError):
    """Bad input; the message is one line that says what was given and what is allowed; exit code 2."""


class RunError(RuntimeError):
    """A run that failed after it had started; exit code 1."""
