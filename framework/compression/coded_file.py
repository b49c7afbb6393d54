"""The bytes of a compressed file: a header in JSON, and the streams of the tensors, each with a checksum.

docs/compressed_format.md describes every byte. Nothing is pickled; whatever the bytes are, decoding returns the
tensors that were encoded or raises a UsageError, and it allocates no more than the tensors take.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from secateur.framework.compression import tensor_coding
from secateur.framework.compression.huffman import decode as decode_streams
from secateur.framework.compression.tensor_coding import Record
from secateur.utils.errors import UsageError
from secateur.utils.files.bounded_yaml import RESULTS, parse_json
from secateur.utils.memory import check_memory
from secateur.utils.suggest import one_line

#: begins every file; a transfer as text changes it
MAGIC = b"\x89SCT\r\n\x1a\n"
VERSION = 1
#: after the magic: version, bytes of the header in the file and unpacked; then the checksum
SIZES, CHECKSUM = struct.Struct("<III"), struct.Struct("<I")
START = len(MAGIC) + SIZES.size + CHECKSUM.size


def encode_file(tensors: Mapping[str, Tensor], metadata: str, masks: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        tensors: name -> tensor, dense; few different values in a tensor make it short.
        metadata: JSON text to keep.
        masks: name of a tensor of packed mask bits -> name of the tensor that it masks.
    """
    masks = masks or {}
    records, streams = [], []
    for name, tensor in tensors.items():
        coded = tensor_coding.encode(tensor, tensors[masks[name]] if name in masks else None)
        sizes = [[len(stream), zlib.crc32(stream)] for stream in coded.streams]
        of = {"of": masks[name]} if name in masks else {}
        records.append({"name": name, **coded.record, **of, "streams": sizes})
        streams += coded.streams
    header = json.dumps({"metadata": json.loads(metadata), "tensors": records}, sort_keys=True,
                        separators=(",", ":")).encode()  # fmt: skip
    packed = zlib.compress(header, 9)
    start = MAGIC + SIZES.pack(VERSION, len(packed), len(header))
    return b"".join([start, CHECKSUM.pack(zlib.crc32(packed, zlib.crc32(start))), packed, *streams])


def is_coded(start: bytes) -> bool:
    """Whether bytes begin like a compressed file."""
    return start[: len(MAGIC)] == MAGIC


def decode_file(data: bytes) -> tuple[dict[str, Tensor], str]:
    """Return the tensors by name, and the JSON text of the metadata.

    Raises:
        UsageError: with the reason, for bytes that `encode_file` does not return.
    """
    header, start = _header(data)
    records, streams, at = _records(header), [], start
    for record in records:
        parts = []
        for size, checksum in record["streams"]:
            part = memoryview(data)[at : at + size]
            if len(part) < size:
                raise UsageError(f"it is truncated: the values of {_quoted(record)} end after {len(data)} bytes")
            if zlib.crc32(part) != checksum:
                raise UsageError(f"the checksum of {_quoted(record)} does not match: the file is damaged")
            parts.append(part)
            at += size
        streams.append(parts)
    if at != len(data):
        raise UsageError(f"{len(data) - at} bytes follow its end")
    return _tensors(records, streams), json.dumps(header["metadata"], sort_keys=True)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the header, and the position of the first stream."""
    if not is_coded(data):
        raise UsageError("it does not begin like a compressed file of Secateur")
    if len(data) < START:
        raise UsageError(f"it is truncated after {len(data)} bytes")
    version, size, unpacked = SIZES.unpack_from(data, len(MAGIC))
    packed = data[START : START + size]
    checksum = zlib.crc32(packed, zlib.crc32(data[: START - CHECKSUM.size]))
    if version != VERSION:
        raise UsageError(f"it has version {version} of the format, this version of Secateur reads {VERSION}")
    if len(packed) < size:
        raise UsageError(f"it is truncated: the header ends after {len(data)} bytes")
    if CHECKSUM.unpack_from(data, START - CHECKSUM.size)[0] != checksum:
        raise UsageError("the checksum of its header does not match: the file is damaged")
    if unpacked > RESULTS.size:
        raise UsageError(f"its header has {unpacked:,} bytes, at most {RESULTS.size:,} are read")
    try:
        text = tensor_coding.inflated(packed, unpacked).tobytes().decode()
    except UnicodeDecodeError as error:
        raise UsageError("its header is not text in UTF-8") from error
    header = parse_json(text, "its header", RESULTS)
    if not isinstance(header, dict) or set(header) != {"metadata", "tensors"}:
        raise UsageError("its header lacks the metadata or the tensors")
    return header, START + size


def _records(header: dict[str, Any]) -> list[Record]:
    records, names = header["tensors"], set()
    if not isinstance(records, list):
        raise UsageError("its list of tensors is damaged")
    for record in records:
        sizes = record.get("streams") if isinstance(record, dict) else None
        pairs = isinstance(sizes, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in sizes)
        if not pairs or not all(isinstance(part, int) and part >= 0 for pair in sizes or () for part in pair):
            raise UsageError("its list of tensors is damaged")
        name = record.get("name")
        if not isinstance(name, str) or name in names:
            raise UsageError(f"its list of tensors has {one_line(name, 60)} twice or without a name")
        names.add(name)
    return records


def _tensors(records: list[Record], streams: list[list[memoryview]]) -> dict[str, Tensor]:
    """Return the decoded tensors, those that others are predicted from first decoded."""
    known = {record["name"]: record for record in records if record.get("coding") != tensor_coding.MASK}
    sizes = []
    for record, parts in zip(records, streams, strict=True):
        with _naming(record):
            sizes.append(tensor_coding.check(record, parts, record.get("of") in known))
    check_memory(sum(sizes), "the network of the file")
    coded = [tensor_coding.huffman_streams(record, parts) for record, parts in zip(records, streams, strict=True)]
    check_memory(8 * sum(stream.count for parts in coded for stream in parts), "the network of the file")
    symbols = iter(decode_streams([stream for parts in coded for stream in parts]))
    found: dict[str, Tensor] = {}
    read = [[next(symbols) for _ in parts] for parts in coded]
    jobs = list(zip(records, streams, read, sizes, strict=True))
    for predicted in (False, True):
        for record, parts, part_symbols, nbytes in jobs:
            if (record["coding"] == tensor_coding.MASK) == predicted:
                with _naming(record):
                    of = found[record["of"]] if predicted else None
                    found[record["name"]] = tensor_coding.decode(record, parts, part_symbols, nbytes, of)
    return {record["name"]: found[record["name"]] for record in records}


@contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Put the name of the tensor in front of a UsageError of the block."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{_quoted(record)}: {error}") from error


def _quoted(record: Record) -> str:
    return f"'{one_line(record['name'], 60)}'"
