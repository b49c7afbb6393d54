"""Open untrusted files: irregular files, and files above a size limit, are rejected before they are opened.

Opening a named pipe waits for a writer, a device may have no end, and a small archive may unpack to terabytes.
"""

import contextlib
import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from secateur.utils.errors import UsageError
from secateur.utils.suggest import one_line

#: first character of a file's mode, as `ls -l` shows it -> kind
FILE_KINDS = {"d": "a folder", "p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
SUFFIX = ".safetensors"
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of a file of torch.save before torch 1.6


def check_regular(path: str | Path, limit: int | None = None) -> int:
    """Return the size of the regular file `path` (links are followed) in bytes, without opening it.

    Args:
        path: The path of the file.
        limit: Largest accepted size in bytes; None accepts any size.

    Raises:
        UsageError: If the path does not exist or is not accessible, if it is a folder, a named pipe, a socket, a
            device or a loop of links, or if the file is larger than the limit.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        dangling = " (the link leads nowhere)" if os.path.islink(path) else ""
        raise UsageError(f"there is no file {path}{dangling}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a loop of symbolic links, not a regular file") from None
        raise UsageError(f"cannot read {path}: {one_line(getattr(error, 'strerror', None) or error)}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = FILE_KINDS.get(stat.filemode(status.st_mode)[0], "something else")
        raise UsageError(f"{path} is {kind}, not a regular file")
    if limit is not None and status.st_size > limit:
        raise UsageError(f"{path} has {status.st_size:,} bytes, at most {limit:,} are read")
    return status.st_size


@contextlib.contextmanager
def reading(path: str | Path, fault: str = "damaged, or not what its name says") -> Iterator[None]:
    """Convert every error of a reader inside the `with` block to a UsageError that names `path` and the fault."""
    try:
        yield
    except UsageError:
        raise
    # Readers of damaged files (numpy, torch, PIL, pickle, safetensors, zlib) have no narrower common class.
    except Exception as error:
        why = one_line(error, 120) or type(error).__name__
        raise UsageError(f"cannot read {path}: {fault} ({why})") from error


def open_regular(path: str | Path, limit: int | None = None) -> IO[bytes]:
    """Open the regular file `path` for reading; raises UsageError, also for the reasons of `check_regular`."""
    check_regular(path, limit)
    with reading(path, "it cannot be opened"):
        return open(path, "rb")


def check_zip(path: str | Path, limit: int) -> None:
    """Raise UsageError if the unpacked entries of a zip archive (such as .npz) have more than `limit` bytes.

    An entry never unpacks to more than its declared size.
    """
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > limit:
        raise UsageError(f"{path} unpacks to {total:,} bytes, at most {limit:,} are read")


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
