"""Errors of the user and of a run; `main.py` prints them as one line and sets the exit code."""

from collections.abc import Sequence


class UsageError(ValueError):
    """Invalid input: an argument, a flag, a file or a plug-in.

    The message is one line that states the given and the allowed values. The command line exits with code 2. A
    subclass of ValueError.

    Args:
        message: The line to show. It names arguments of Python, not flags.
        argument: Name of the argument that is to be changed, as in the message, or several names; the command line
            shows their flags. None (default) for another error.

    Example:
        >>> from secateur import UsageError, build
        >>> try:
        ...     build("models", "VG16")
        ... except UsageError as error:
        ...     print(error)
        unknown model 'VG16': did you mean 'VGG16'? (one of ...)
    """

    def __init__(self, message: str, argument: str | Sequence[str] | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class RunError(RuntimeError):
    """Failure of a run after its start, such as a loss that becomes NaN.

    The message is one line. The command line exits with code 1. A subclass of RuntimeError.

    Args:
        message: The line to show.

    Example:
        >>> from secateur import RunError
        >>> issubclass(RunError, RuntimeError)
        True
    """
