"""Checks of numbers in the constructors of values, with one wording; the error carries the argument's name."""

from secateur.utils.errors import UsageError


def check_whole(owner: object, **least: int) -> None:
    """Raise UsageError unless these attributes of `owner` are whole numbers >= the given ones, or None."""
    for name, low in least.items():
        value = getattr(owner, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            who = type(owner).__name__
            raise UsageError(f"{who}: {name} must be a whole number >= {low}, got {value!r}", argument=name)


def check_share(owner: object, *names: str) -> None:
    """Raise UsageError unless these attributes of `owner` are shares in [0, 1)."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise UsageError(f"{type(owner).__name__}: {name} must be in [0, 1), got {value!r}", argument=name)
