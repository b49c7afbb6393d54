"""Recognition and reading of compressed files, which `save_compressed` writes."""

from pathlib import Path

from torch import Tensor

from secateur.framework.compression.coded_file import MAGIC, decode_file, is_coded
from secateur.utils.errors import UsageError
from secateur.utils.files.regular_file import open_regular


def is_compressed(path: str | Path) -> bool:
    """Whether a regular file begins like a compressed file; raises UsageError if it cannot be read."""
    with open_regular(path) as file:
        return is_coded(file.read(len(MAGIC)))


def read_compressed(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a compressed file by name, and its metadata; UsageError with path and reason."""
    with open_regular(path) as file:
        data = file.read()
    try:
        return decode_file(data)
    except UsageError as error:
        raise UsageError(f"cannot read {path}: {error}") from error
