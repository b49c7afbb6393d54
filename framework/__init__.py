"""The machinery of Secateur: rooms that import only rooms below them (docs/architecture.md).

Import the public names from `secateur`. In the root of a clone `from framework import prune` gives the same.
"""

from typing import Any

if __name__ == "framework":  # imported by the name of its folder: no second copy of what is in it
    __path__ = []


def __getattr__(name: str) -> Any:
    if __name__ == "framework":
        import secateur

        return getattr(secateur, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
