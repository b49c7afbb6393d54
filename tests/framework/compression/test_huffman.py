"""Huffman codes and relative indices: exact, short, and damaged streams are refused."""

import heapq

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import UsageError
from secateur.framework.compression import huffman, sparse_index
from secateur.framework.compression.huffman import Stream, code_lengths, decode, encode, longest_code


def optimal_bits(counts: list[int]) -> int:
    """The bits of Huffman's algorithm, by its heap."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        total += pair
        heapq.heappush(heap, pair)
    return total


@given(st.lists(st.integers(0, 50), min_size=2, max_size=60))
def test_the_codes_are_as_short_as_those_of_huffmans_algorithm(counts: list[int]) -> None:
    array = numpy.array(counts)
    lengths = code_lengths(array, 19)
    if numpy.count_nonzero(array) > 1:
        assert int((lengths * array).sum()) == optimal_bits(counts)
        assert sum(2.0 ** -int(length) for length in lengths if length) == 1


def test_a_limit_of_the_length_is_kept() -> None:
    counts = numpy.array([1.618**n for n in range(24)]).astype(numpy.int64)
    assert code_lengths(counts, 40).max() == 23
    lengths = code_lengths(counts, 12)
    assert lengths.max() == 12 and (0.5**lengths).sum() == 1
    assert longest_code(2**17) == huffman.LONGEST


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 300)), max_size=4), st.integers(0, 2**31))
def test_several_streams_come_back_exactly(shapes: list[tuple[int, int]], seed: int) -> None:
    generator = numpy.random.default_rng(seed)
    arrays = [(generator.geometric(0.2, count) - 1) % alphabet for count, alphabet in shapes]
    streams = [
        Stream(encode(array, alphabet), len(array), alphabet)
        for array, (_, alphabet) in zip(arrays, shapes, strict=True)
    ]
    for array, found in zip(arrays, decode(streams), strict=True):
        numpy.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("count", [1, 1024, 5000])
def test_one_symbol_takes_no_bits(count: int) -> None:
    data = encode(numpy.full(count, 3), 32)
    assert len(data) == 20 + 2 * -(-count // 1024)
    (found,) = decode([Stream(data, count, 32)])
    assert found.tolist() == [3] * count


def test_an_empty_stream_and_the_largest_alphabet() -> None:
    assert decode([]) == []
    assert decode([Stream(encode(numpy.zeros(0, int), 5), 0, 5)])[0].shape == (0,)
    symbols = numpy.random.default_rng(0).permutation(2**17)
    (found,) = decode([Stream(encode(symbols, 2**17), len(symbols), 2**17)])
    numpy.testing.assert_array_equal(found, symbols)


def test_damaged_streams_are_refused_or_give_symbols_of_the_alphabet() -> None:
    symbols = numpy.random.default_rng(1).binomial(30, 0.3, 3000)
    data = encode(symbols, 31)
    refused = 0
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        try:
            (found,) = decode([Stream(bytes(damaged), 3000, 31)])
            assert found.max() < 31
        except UsageError:
            refused += 1
    assert refused > 30  # checksums find the others
    for cut in (0, 10, 25, len(data) - 1):
        with pytest.raises(UsageError, match="need more than|do not match its length"):
            decode([Stream(data[:cut], 3000, 31)])
    with pytest.raises(UsageError, match="need more than"):
        decode([Stream(data, 10**15, 31)])  # before memory is allocated
    with pytest.raises(UsageError, match="alphabet of 0"):
        decode([Stream(data, 3000, 0)])
    with pytest.raises(UsageError, match="not those of a Huffman code"):
        decode([Stream(bytes(20) + data[20:], 3000, 31)])


@given(st.lists(st.booleans(), max_size=400), st.sampled_from(sparse_index.LARGEST))
def test_relative_indices_come_back_exactly(filled: list[bool], largest: int) -> None:
    positions = numpy.flatnonzero(filled)
    symbols = sparse_index.to_symbols(positions, largest)
    assert len(symbols) == 0 or symbols.max() <= largest
    numpy.testing.assert_array_equal(sparse_index.to_positions(symbols, largest, len(filled)), positions)


def test_the_largest_run_is_the_one_with_the_fewest_bytes() -> None:
    positions = numpy.flatnonzero(numpy.random.default_rng(0).random(200_000) < 0.08)
    largest, bits = sparse_index.best_largest(positions)
    sizes = {one: len(encode(sparse_index.to_symbols(positions, one), one + 1)) for one in sparse_index.LARGEST}
    assert sizes[largest] <= 1.001 * min(sizes.values())
    assert bits / 8 == pytest.approx(sizes[largest], rel=0.02)
    assert bits < 200_000 * 0.42  # the entropy is 0.402 bits an entry


def test_bad_indices_are_refused() -> None:
    with pytest.raises(UsageError, match="beyond its 4 entries"):
        sparse_index.to_positions(numpy.array([4]), 8, 4)
    with pytest.raises(UsageError, match="end with zeros"):
        sparse_index.to_positions(numpy.array([8]), 8, 100)
