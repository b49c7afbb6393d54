"""Canonical, length-limited Huffman codes; encoding and decoding are vectorised with numpy.

Huffman codes can only be read from the front. The symbols are therefore divided into blocks of `BLOCK`, each of
which starts at a byte whose position is recorded, and the decoder reads one symbol of every block of every stream
at a time. A stream is

    5 bits for each symbol of the alphabet: the length of its code, 0 if it does not occur; padded to a byte
    2 bytes for each block (little-endian): the number of its bytes
    the blocks, each padded with zero bits to a byte; the first bit of a code is the highest of its byte

Codes of one length are consecutive numbers in the order of the symbols. If only one symbol occurs, its length is 1
and its code has no bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from secateur.utils.errors import UsageError

#: symbols of a block; a block has at most 2.5 KB
BLOCK = 1024
#: most symbols of an alphabet, and bits of a code, for which a 32-bit word at a byte always contains the code
LARGEST_ALPHABET, LONGEST = 2**17, 19
#: number of bits of a length in the file
LENGTH_BITS = 5
#: blocks that are encoded, or decoded in turns, at once
TOGETHER = 4096

Array = NDArray[Any]


@dataclass(frozen=True)
class Stream:
    """A stream to decode: its bytes, and the numbers of its symbols and of the symbols of the alphabet."""

    data: bytes | memoryview
    count: int
    alphabet: int


def longest_code(alphabet: int) -> int:
    """Return the largest allowed length of a code; the table of the decoder has 2 to the power of it entries."""
    return min(LONGEST, max(12, (alphabet - 1).bit_length() + 2))


def code_lengths(counts: Array, limit: int) -> Array:
    """Return the lengths of the codes that minimise the number of bits, with codes of at most `limit` bits.

    Package-merge (Larmore and Hirschberg, 1990): a list of all symbols by frequency is `limit` times merged with
    the pairs of the list before, and the length of a code is the number of lists in whose first entries it is.

    Args:
        counts: frequency of each symbol, (alphabet,); 2 to the power of `limit` may not be below the alphabet.
        limit: largest length.

    Returns:
        uint8 (alphabet,), 0 for symbols that do not occur.
    """
    lengths = numpy.zeros(len(counts), numpy.uint8)
    used = numpy.flatnonzero(counts)
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    used = used[numpy.argsort(counts[used], kind="stable")]
    weights = counts[used].astype(numpy.int64)
    merged, is_symbol = weights, [numpy.ones(len(used), bool)]
    for _ in range(limit - 1):
        pairs = merged[: len(merged) // 2 * 2].reshape(-1, 2).sum(1)
        both = numpy.concatenate([weights, pairs])
        order = numpy.argsort(both, kind="stable")
        merged = both[order]
        is_symbol.append(order < len(weights))
    taken = 2 * len(used) - 2
    for symbols in reversed(is_symbol):
        among = int(symbols[:taken].sum())
        lengths[used[:among]] += 1
        taken = 2 * (taken - among)
    return lengths


def coded_bits(counts: Array) -> int:
    """Return an estimate of the bits of a stream with these frequencies, its lengths and sizes included.

    A code has about log2(1 / share) bits, and at least one unless it is the only one.
    """
    used, total = counts[counts > 0].astype(numpy.float64), int(counts.sum())
    codes = (used * numpy.maximum(1, numpy.log2(total / used))).sum() if len(used) > 1 else 0
    return int(codes) + LENGTH_BITS * len(counts) + total * 20 // BLOCK


def encode(symbols: Array, alphabet: int) -> bytes:
    """Return the bytes of a stream.

    Args:
        symbols: numbers below `alphabet`, (n,).
        alphabet: number of possible symbols, at most `LARGEST_ALPHABET`.
    """
    counts = numpy.bincount(symbols, minlength=alphabet)
    lengths = code_lengths(counts, longest_code(alphabet))
    head = numpy.packbits(_bits_of(lengths)).tobytes()
    if numpy.count_nonzero(counts) < 2:
        return head + bytes(2 * _blocks(len(symbols)))
    codes, lengths = _canonical(lengths), lengths.astype(numpy.int64)
    sizes, parts = [], []
    for start in range(0, len(symbols), TOGETHER // 16 * BLOCK):
        size, part = _encode_blocks(symbols[start : start + TOGETHER // 16 * BLOCK], codes, lengths)
        sizes.append(size)
        parts.append(part)
    return b"".join([head, *sizes, *parts])


def _encode_blocks(symbols: Array, codes: Array, lengths: Array) -> tuple[bytes, bytes]:
    """Return the sizes of the blocks, and the blocks."""
    length = lengths[symbols]
    ends = numpy.zeros(_blocks(len(symbols)) * BLOCK, numpy.int64)
    ends[: len(symbols)] = length
    ends = ends.reshape(-1, BLOCK).cumsum(1)
    sizes = (ends[:, -1] + 7) >> 3
    starts = (sizes.cumsum() - sizes) << 3
    ends += starts[:, None]
    first = ends.reshape(-1)[: len(symbols)] - length
    # of the two words of 32 bits that contain a code; the codes of one word follow each other
    both = codes[symbols] << (64 - (first & 31) - length).astype(numpy.uint64)
    word = first >> 5
    begins = numpy.flatnonzero(numpy.diff(word, prepend=-1))
    words = numpy.zeros(int(sizes.sum()) // 4 + 2, numpy.uint32)
    high, low = both >> numpy.uint64(32), both & numpy.uint64(0xFFFFFFFF)
    words[word[begins]] = numpy.bitwise_or.reduceat(high, begins)
    words[word[begins] + 1] |= numpy.bitwise_or.reduceat(low, begins).astype(numpy.uint32)
    return sizes.astype("<u2").tobytes(), words.astype(">u4").tobytes()[: int(sizes.sum())]


def decode(streams: Sequence[Stream]) -> list[Array]:
    """Return the symbols of every stream, uint32 (count,).

    Raises:
        UsageError: if a stream is not one that `encode` returns. Memory in proportion to the numbers of symbols is
            allocated only if the streams are long enough to contain their blocks.
    """
    read = [_Blocks(stream) for stream in streams]
    data = b"".join(part.data for part in read)
    words = _words(data)
    tables = numpy.concatenate([numpy.zeros(0, numpy.uint32), *(part.table for part in read)])
    bases = numpy.cumsum([0, *(len(part.table) for part in read)])
    places = numpy.cumsum([0, *(len(part.data) for part in read)])
    empty = numpy.zeros(0, numpy.int64)
    lanes = [len(part.sizes) for part in read]
    sizes = numpy.concatenate([empty, *(part.sizes for part in read)])
    starts = numpy.concatenate(
        [empty, *(p.sizes.cumsum() - p.sizes + at for p, at in zip(read, places, strict=False))]
    )
    counts = numpy.concatenate([empty, *(part.counts for part in read)])
    base = numpy.repeat(bases[:-1], lanes).astype(numpy.uint32)
    shift = numpy.repeat([32 - part.bits for part in read], lanes).astype(numpy.uint32)
    symbols = numpy.zeros((len(sizes), BLOCK), numpy.uint32)
    order = numpy.argsort(-counts, kind="stable")
    for begin in range(0, len(order), TOGETHER):
        some = order[begin : begin + TOGETHER]
        ends = starts[some] * 8
        symbols[some] = _in_turns(words, tables, ends, counts[some], base[some], shift[some])
        if not numpy.array_equal((ends + 7) >> 3, starts[some] + sizes[some]):
            raise UsageError("a block of its codes does not end where the next one starts")
    first = numpy.cumsum([0, *lanes])
    return [
        symbols[begin:end].reshape(-1)[: stream.count]
        for begin, end, stream in zip(first[:-1], first[1:], streams, strict=True)
    ]


def _in_turns(words: Array, tables: Array, bit: Array, counts: Array, base: Array, shift: Array) -> Array:
    """Return the symbols of blocks, (blocks, BLOCK), the longest first; `bit` moves from starts to ends."""
    found = numpy.zeros((BLOCK, len(counts)), numpy.uint32)
    active = len(counts) - numpy.searchsorted(counts[::-1], numpy.arange(BLOCK), side="right")
    at = numpy.empty(len(counts), numpy.int64)
    word, entry, within = (numpy.empty(len(counts), numpy.uint32) for _ in range(3))
    for turn, some in enumerate(active):
        if some == 0:
            break
        a, w, e, i, b = at[:some], word[:some], entry[:some], within[:some], bit[:some]
        numpy.right_shift(b, 3, out=a)
        words.take(a, out=w, mode="clip")
        numpy.bitwise_and(b, 7, out=i, casting="unsafe")
        numpy.left_shift(w, i, out=w)
        numpy.right_shift(w, shift[:some], out=w)
        numpy.add(w, base[:some], out=w)
        tables.take(w, out=e, mode="clip")
        found[turn, :some] = e
        numpy.bitwise_and(e, 31, out=e)
        numpy.add(b, e, out=b)
    return (found >> numpy.uint32(5)).T


class _Blocks:
    """The parts of a stream: sizes and numbers of symbols of its blocks, their bytes, and the table of its codes.

    An entry of the table, for each number of `bits` bits, is 32 x symbol + length of the code that it begins with.
    """

    def __init__(self, stream: Stream) -> None:
        data, blocks = memoryview(stream.data), _blocks(stream.count)
        if not 0 < stream.alphabet <= LARGEST_ALPHABET:
            raise UsageError(f"an alphabet of {stream.alphabet} symbols is not supported")
        head = (LENGTH_BITS * stream.alphabet + 7) // 8
        if len(data) < head + 2 * blocks:
            raise UsageError(f"{stream.count} codes need more than {len(data)} bytes")
        self.sizes = numpy.frombuffer(data[head : head + 2 * blocks], "<u2").astype(numpy.int64)
        self.data = data[head + 2 * blocks :]
        if int(self.sizes.sum()) != len(self.data):
            raise UsageError("the sizes of its blocks do not match its length")
        self.counts = numpy.full(blocks, BLOCK, numpy.int64)
        self.counts[-1:] = stream.count - BLOCK * (blocks - 1)
        self.table, self.bits = _table(_lengths_of(data[:head], stream.alphabet), stream)


def _table(lengths: Array, stream: Stream) -> tuple[Array, int]:
    used = numpy.flatnonzero(lengths)
    if len(used) == 0 and stream.count == 0:
        return numpy.zeros(2, numpy.uint32), 1
    if len(used) == 1 and lengths[used[0]] == 1:
        return numpy.full(2, used[0] << 5, numpy.uint32), 1
    bits = int(lengths.max(initial=0))
    if (
        bits > longest_code(stream.alphabet)
        or (1 << (bits - lengths[used].astype(numpy.int64))).sum() != 1 << bits
    ):
        raise UsageError("the lengths of its codes are not those of a Huffman code")
    used = used[numpy.argsort(lengths[used], kind="stable")]
    length = lengths[used].astype(numpy.int64)
    return numpy.repeat((used << 5 | length).astype(numpy.uint32), 1 << (bits - length)), bits


def _canonical(lengths: Array) -> Array:
    """Return the codes, uint64 (alphabet,)."""
    used = numpy.flatnonzero(lengths)
    used = used[numpy.argsort(lengths[used], kind="stable")]
    length = lengths[used].astype(numpy.int64)
    bits = int(length[-1])
    share = 1 << (bits - length)
    codes = numpy.zeros(len(lengths), numpy.uint64)
    codes[used] = (share.cumsum() - share) >> (bits - length)
    return codes


def _words(data: bytes) -> Array:
    """Return the 32 bits from each byte on, with zeros behind the end for blocks that are damaged."""
    padded = data + bytes(BLOCK * LONGEST // 8 + 8)
    overlapping: Array = numpy.ndarray((len(padded) - 3,), ">u4", padded, strides=(1,))
    return overlapping.astype(numpy.uint32)


def _bits_of(lengths: Array) -> Array:
    return numpy.unpackbits(lengths[:, None], axis=1)[:, 8 - LENGTH_BITS :].reshape(-1)


def _lengths_of(data: memoryview, alphabet: int) -> Array:
    bits = numpy.unpackbits(numpy.frombuffer(data, numpy.uint8), count=LENGTH_BITS * alphabet)
    return numpy.packbits(bits.reshape(alphabet, LENGTH_BITS), axis=1)[:, 0] >> (8 - LENGTH_BITS)


def _blocks(count: int) -> int:
    return -(-count // BLOCK)
