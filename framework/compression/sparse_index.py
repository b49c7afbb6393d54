"""Relative indices of nonzero entries, as in Deep Compression (arXiv:1510.00149).

Each nonzero entry has the number of zeros before it. A run of zeros as long as the largest number is a symbol of
its own, after which counting begins again; the paper stores a padding zero among the weights there.
"""

from typing import Any

import numpy
from numpy.typing import NDArray

from secateur.framework.compression.huffman import coded_bits
from secateur.utils.errors import UsageError

#: candidates for the largest run of zeros of a symbol
LARGEST = tuple(2**bits for bits in range(1, 11))

Array = NDArray[Any]


def best_largest(positions: Array) -> tuple[int, int]:
    """Return the largest run of zeros with the fewest bits, and about that number of bits."""
    gaps, counts = numpy.unique(_gaps(positions), return_counts=True)
    return min((_cost(gaps, counts, largest), largest) for largest in LARGEST)[::-1]


def _cost(gaps: Array, counts: Array, largest: int) -> int:
    frequency = numpy.zeros(largest + 1, numpy.int64)
    numpy.add.at(frequency, gaps % largest, counts)
    frequency[largest] = int((gaps // largest * counts).sum())
    return coded_bits(frequency)


def to_symbols(positions: Array, largest: int) -> Array:
    """Return the symbols of ascending positions: below `largest`, zeros before an entry; `largest`, only zeros."""
    gaps = _gaps(positions)
    runs, rest = numpy.divmod(gaps, largest)
    ends = (runs + 1).cumsum()
    symbols = numpy.full(int(ends[-1]) if len(ends) else 0, largest, numpy.int64)
    symbols[ends - 1] = rest
    return symbols


def to_positions(symbols: Array, largest: int, size: int) -> Array:
    """Return the ascending positions; raise UsageError if one is not below `size`."""
    if len(symbols) > 0 and symbols[-1] == largest:
        raise UsageError("its indices end with zeros")
    is_entry = symbols < largest
    positions = (symbols.astype(numpy.int64) + is_entry).cumsum()[is_entry] - 1
    if len(positions) and positions[-1] >= size:
        raise UsageError(f"an index is beyond its {size} entries")
    return positions


def _gaps(positions: Array) -> Array:
    return numpy.diff(positions.astype(numpy.int64), prepend=-1) - 1
