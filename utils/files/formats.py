"""Recognise tensor files by their first bytes."""

import zipfile
from pathlib import Path

from secateur.utils.errors import UsageError

SUFFIX = ".safetensors"


LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of a file of torch.save before torch 1.6


def is_safetensors(file: Path) -> bool:
    """Return whether the file begins like a safetensors file: the header's length in 8 bytes, then JSON."""
    start = _start(file, 9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= file.stat().st_size - 8


def is_from_torch(file: Path) -> bool:
    """Return whether the file begins like a file of torch.save: a zip archive, or a number before torch 1.6."""
    if _start(file, len(LEGACY)) == LEGACY:
        return True
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):  # a damaged archive
        return False


def _start(file: Path, size: int) -> bytes:
    """Return the first bytes of a file; raises UsageError if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
