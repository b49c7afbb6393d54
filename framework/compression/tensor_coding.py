"""Coding of single tensors: as shared values with Huffman codes, as a predicted mask, or as plain bytes.

The codings work on bits, so that every tensor comes back exactly, NaN and -0.0 included.
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.framework.compression import huffman, sparse_index
from secateur.framework.compression.huffman import LARGEST_ALPHABET, Stream
from secateur.utils.errors import UsageError
from secateur.utils.tensors import dtype_name

#: unsigned numpy dtypes by bytes of an entry
UNSIGNED = {1: numpy.uint8, 2: numpy.uint16, 4: numpy.uint32, 8: numpy.uint64}
DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    )
}  # fmt: skip
RAW, DEFLATED, SHARED, MASK = "raw", "deflated", "shared", "mask"

Array = NDArray[Any]
#: facts of a tensor in the header, of types of JSON
Record = dict[str, Any]


class Coded(NamedTuple):
    """A coded tensor: its facts, and its streams."""

    record: Record
    streams: list[bytes]


def bits_of(tensor: Tensor) -> Array:
    """Return the bits of the entries as unsigned numbers, (entries,), in the order of the last dimension first."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.view(UNSIGNED[tensor.element_size()])


def encode(tensor: Tensor, mask_of: Tensor | None = None) -> Coded:
    """Return the coding of a tensor: shared values if it has few, else plain or deflated bytes.

    Args:
        tensor: dense tensor of a dtype of `DTYPES`.
        mask_of: for a mask, packed to bits, the tensor that has zeros where the mask has.
    """
    name, shape = dtype_name(tensor.dtype), list(tensor.shape)
    if name not in DTYPES:
        raise UsageError(f"a tensor of dtype {name} cannot be coded (one of {', '.join(DTYPES)})")
    bits = bits_of(tensor)
    if mask_of is not None:
        unlike = bits ^ packed_pattern(bits_of(mask_of))
        streams = [zlib.compress(unlike.tobytes(), 9)] if unlike.any() else []
        return Coded({"coding": MASK, "dtype": name, "shape": shape}, streams)
    plain = bits.tobytes()
    if tensor.is_floating_point() and tensor.dim() > 1 and len(bits) > 1:
        facts, streams = _shared(bits, shape[0])
        if streams and sum(map(len, streams)) < len(plain):
            return Coded({"coding": SHARED, "dtype": name, "shape": shape} | facts, streams)
    deflated = zlib.compress(plain, 9 if len(plain) < 2**16 else 1)  # 9 takes a second for some megabytes
    if len(deflated) < len(plain):
        return Coded({"coding": DEFLATED, "dtype": name, "shape": shape}, [deflated])
    return Coded({"coding": RAW, "dtype": name, "shape": shape}, [plain])


def packed_pattern(bits: Array) -> Array:
    """Return the bits of the entries that are not +0.0, eight in a byte, the first in the lowest."""
    return numpy.packbits(bits != 0, bitorder="little")


def _shared(bits: Array, rows: int) -> tuple[Record, list[bytes]]:
    """Return facts and streams of the shared values; none if there are too many values for it to be shorter.

    The streams are the values, ascending by their bits, and their codes; with `largest`, only the codes of nonzero
    values and their relative indices, along the rows or, with `columns`, down the columns of the (rows, -1)
    matrix.
    """
    values = numpy.unique(bits)
    if len(values) > min(LARGEST_ALPHABET, 1 + len(bits) // 2):
        return {}, []
    ways = []
    for columns in (False, True) if values[0] == 0 else ():
        flat = bits.reshape(rows, -1).T.ravel() if columns else bits
        positions = numpy.flatnonzero(flat)
        largest, index_bits = sparse_index.best_largest(positions) if len(positions) else (2, 0)
        ways.append((index_bits, columns, largest, positions, flat))
    codes = numpy.searchsorted(values, ways[0][-1][ways[0][-2]] if ways else bits)
    counts = numpy.bincount(codes, minlength=len(values))
    entry_bits = huffman.coded_bits(counts[1:]) if len(values) > 1 else 0
    counts[0] += len(bits) - len(codes)
    if not ways or min(way[0] for way in ways) + entry_bits >= huffman.coded_bits(counts):
        codes = numpy.searchsorted(values, bits) if ways else codes
        return {"values": len(values)}, [values.tobytes(), huffman.encode(codes, len(values))]
    _, columns, largest, positions, flat = min(ways, key=lambda way: way[0])
    runs = sparse_index.to_symbols(positions, largest)
    codes = numpy.searchsorted(values[1:], flat[positions])
    facts = {"values": len(values) - 1, "largest": largest, "columns": columns, "nonzero": len(positions)}
    streams = [values[1:].tobytes()]
    if len(positions):
        streams += [huffman.encode(codes, len(values) - 1), huffman.encode(runs, largest + 1)]
    return facts | {"runs": len(runs)}, streams


def check(record: Record, streams: list[memoryview], predicted: bool) -> int:
    """Return the bytes of the decoded tensor; raise UsageError for facts that contradict each other.

    `predicted`: whether there is a tensor that predicts the mask.
    """
    shape, dtype, coding = record.get("shape"), record.get("dtype"), record.get("coding")
    if not isinstance(shape, list) or not all(map(_is_count, shape)) or len(shape) > 16 or dtype not in DTYPES:
        raise UsageError("its shape or dtype is damaged")
    entries = 1
    for size in shape:
        entries *= size
    nbytes = entries * DTYPES[dtype].itemsize
    wanted = {RAW: (1,), DEFLATED: (1,), MASK: (0, 1), SHARED: (1, 2, 3)}.get(str(coding), ())
    if len(streams) not in wanted or coding == MASK and not (predicted and dtype == "uint8"):
        raise UsageError("its coding is damaged")
    if coding == RAW and len(streams[0]) != nbytes:
        raise UsageError(f"it has {len(streams[0])} bytes, its shape {nbytes}")
    if coding == SHARED:
        _check_shared(record, streams, entries)
    return nbytes


def _check_shared(record: Record, streams: list[memoryview], entries: int) -> None:
    values, nonzero, runs = (record.get(key, 0) for key in ("values", "nonzero", "runs"))
    sparse = "largest" in record
    counts = (values, nonzero, runs, record.get("largest", 2))
    fits = all(map(_is_count, counts)) and values <= LARGEST_ALPHABET and nonzero <= entries
    fits = fits and len(streams[0]) == values * DTYPES[record["dtype"]].itemsize
    if sparse:
        fits = fits and record["largest"] in sparse_index.LARGEST and len(record["shape"]) > 1
        fits = fits and nonzero <= runs <= nonzero + entries // 2 and len(streams) == (3 if nonzero else 1)
        fits = fits and isinstance(record.get("columns"), bool) and (values > 0 or not nonzero)
    else:
        fits = fits and len(streams) == 2 and values > 0
    if not fits:
        raise UsageError("the numbers of its values and codes contradict each other")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def huffman_streams(record: Record, streams: list[memoryview]) -> list[Stream]:
    """Return the streams of a checked tensor that have Huffman codes."""
    if record["coding"] != SHARED or len(streams) == 1:
        return []
    if "largest" not in record:
        entries = 1
        for size in record["shape"]:
            entries *= size
        return [Stream(streams[1], entries, record["values"])]
    return [
        Stream(streams[1], record["nonzero"], record["values"]),
        Stream(streams[2], record["runs"], record["largest"] + 1),
    ]


def decode(
    record: Record, streams: list[memoryview], symbols: list[Array], nbytes: int, mask_of: Tensor | None
) -> Tensor:
    """Return a tensor from its checked facts, its streams and the symbols of its Huffman codes."""
    dtype = DTYPES[record["dtype"]]
    kind, coding = UNSIGNED[dtype.itemsize], record["coding"]
    if coding == SHARED:
        bits = _unshared(record, numpy.frombuffer(streams[0], kind), symbols, nbytes // dtype.itemsize)
    elif coding == RAW:
        bits = numpy.frombuffer(streams[0], kind).copy()
    else:
        bits = numpy.zeros(nbytes, numpy.uint8) if not streams else inflated(streams[0], nbytes).copy()
        if mask_of is not None:
            pattern = packed_pattern(bits_of(mask_of))
            if len(pattern) != len(bits):
                raise UsageError("its mask has another size than its weight")
            bits = bits ^ pattern
    flat = torch.from_numpy(bits.view(numpy.uint8))
    if dtype == torch.bool and bool((flat > 1).any()):
        raise UsageError("it has truth values other than 0 and 1")
    return flat.view(dtype).reshape(record["shape"])


def _unshared(record: Mapping[str, Any], values: Array, symbols: list[Array], entries: int) -> Array:
    if "largest" not in record:
        return values[symbols[0]]
    flat = numpy.zeros(entries, values.dtype)
    if symbols:
        positions = sparse_index.to_positions(symbols[1], record["largest"], entries)
        if len(positions) != record["nonzero"]:
            raise UsageError("its indices and its codes have different numbers")
        flat[positions] = values[symbols[0]]
    if record["columns"]:
        flat = flat.reshape(-1, record["shape"][0]).T.reshape(-1)
    return flat


def inflated(data: bytes | memoryview, nbytes: int) -> Array:
    """Return the `nbytes` bytes that zlib has deflated, uint8; more are never unpacked."""
    reader = zlib.decompressobj()
    try:
        plain = reader.decompress(data, nbytes + 1)
    except zlib.error as error:
        raise UsageError(f"zlib cannot unpack it ({error})") from error
    if len(plain) != nbytes or not reader.eof or reader.unused_data:
        raise UsageError(f"it does not unpack to {nbytes} bytes")
    return numpy.frombuffer(plain, numpy.uint8)
