"""One-line messages for unknown names, with the nearest known name."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

from secateur.utils.errors import UsageError


def one_line(text: object, limit: int = 300) -> str:
    """Return `text` with white space collapsed to single spaces, truncated to `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Shorten the UsageErrors of a function or a block, which quote names from an untrusted file, to one line."""
    try:
        yield
    except UsageError as error:
        raise UsageError(one_line(error), argument=error.argument) from error


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the entry of `allowed` most similar to `name`, ignoring case, or None."""
    folded: dict[str, str] = {}
    for entry in allowed:
        folded.setdefault(entry.casefold(), entry)  # on equal spellings the first entry wins
    matches = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return ": did you mean '...'?" with the entry of `allowed` most similar to `name`, or nothing."""
    match = nearest(name, allowed)
    return f": did you mean '{match}'?" if match is not None else ""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return one line such as "unknown model 'VG16': did you mean 'VGG16'? (one of ResNet18, VGG16)"."""
    names = list(allowed)
    choice = f"one of {', '.join(names)}" if names else "there are none"
    return f"unknown {kind} '{one_line(given)}'{did_you_mean(given, names)} ({choice})"
