"""Recognise tensor files by their first bytes."""

import zipfile
from pathlib import Path

from secateur.utils.files.regular_file import open_regular

SUFFIX = ".safetensors"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of a file of torch.save before torch 1.6


def is_safetensors(file: Path) -> bool:
    """Return whether the file begins like a safetensors file: the header's length in 8 bytes, then JSON."""
    with open_regular(file) as opened:
        start = opened.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= file.stat().st_size - 8


def is_from_torch(file: Path) -> bool:
    """Return whether the file begins like a file of torch.save: a zip archive, or a number before torch 1.6."""
    with open_regular(file) as opened:
        if opened.read(len(LEGACY)) == LEGACY:
            return True
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):  # a damaged archive
        return False
