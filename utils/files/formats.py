"""Recognise tensor files by their first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from secateur.utils.errors import UsageError

SUFFIX = ".safetensors"


LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began a file before torch 1.6


def is_safetensors(file: Path) -> bool:
    """Whether the file begins as the format says: the header's length in 8 bytes, then JSON."""
    start = _start(file, 9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= file.stat().st_size - 8


def is_from_torch(file: Path) -> bool:
    """Whether the file begins like what torch.save writes: a zip archive with its data, before 1.6 a number."""
    if _start(file, len(LEGACY)) == LEGACY:
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):  # damaged in one way or another
        return False


def _start(file: Path, size: int) -> bytes:
    """The first bytes of a file. Raises UsageError for one that cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
