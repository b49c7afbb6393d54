"""The compressed file: exact for every tensor, and every damaged byte is refused."""

import zlib
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur import UsageError
from secateur.framework.compression import coded_file
from secateur.framework.compression.coded_file import decode_file, encode_file
from secateur.framework.network.preserve import same_bits


def shared(*shape: int, values: int = 31, density: float = 0.1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(values, generator=generator)
    codes = torch.randint(values, shape, generator=generator)
    return codebook[codes] * (torch.rand(shape, generator=generator) < density) + 0.0


def packed(weight: Tensor) -> Tensor:
    return torch.from_numpy(numpy.packbits((weight != 0).numpy(), bitorder="little"))


def contents() -> dict[str, Tensor]:
    sparse, dense = shared(40, 30), shared(20, 3, 3, 3, density=1.0)
    return {
        "sparse": sparse, "mask": packed(sparse), "dense": dense, "other mask": packed(dense) ^ 1,
        "bias": torch.randn(7), "count": torch.tensor(5), "kept": torch.arange(20), "empty": torch.zeros(0, 4),
        "zero": torch.zeros(16, 8), "constant": torch.ones(16, 8), "switch": torch.tensor([True, False]),
        "special": torch.tensor([[float("nan"), -0.0], [0.0, float("inf")]]).repeat(8, 1),
        "half": shared(30, 30).half(), "brain": shared(30, 30).bfloat16(), "double": shared(30, 30).double(),
        "signal": shared(4, 5, 6), "volume": shared(4, 3, 2, 2, 2),
    }  # fmt: skip


MASKS = {"mask": "sparse", "other mask": "dense"}


def test_every_tensor_comes_back_exactly() -> None:
    tensors = contents()
    found, metadata = decode_file(encode_file(tensors, '{"b": [1, "é"], "a": null}', MASKS))
    assert metadata == '{"a": null, "b": [1, "\\u00e9"]}'
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert same_bits(found[name], tensor), name


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300), st.floats(0, 1), st.integers(0, 9))
def test_matrices_of_any_density_come_back_exactly(
    rows: int, columns: int, values: int, density: float, seed: int
) -> None:
    weight = shared(rows, columns, values=values, density=density, seed=seed)
    found, _ = decode_file(encode_file({"w": weight, "m": packed(weight)}, "{}", {"m": "w"}))
    assert same_bits(found["w"], weight) and same_bits(found["m"], packed(weight))


def test_a_sparse_matrix_takes_close_to_its_entropy_and_its_mask_nothing() -> None:
    weight = shared(300, 784, density=0.08)
    data = encode_file({"w": weight, "m": packed(weight)}, "{}", {"m": "w"})
    entropy = 300 * 784 * (0.402 + 0.08 * numpy.log2(31)) / 8
    assert len(data) < 1.04 * entropy + 400


def test_columns_with_equal_density_are_read_down_the_columns() -> None:
    weight = shared(200, 100, density=0.5)
    weight[:, ::2] = 0
    across = len(encode_file({"w": weight}, "{}"))
    assert across < len(encode_file({"w": weight.flatten()[torch.randperm(20000)].view(200, 100)}, "{}")) * 0.95


def test_a_flip_of_any_bit_and_every_truncation_is_refused() -> None:
    data = encode_file(contents(), '{"format": 1}', MASKS)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(UsageError, match="checksum|begin like|version|truncated"):
            decode_file(bytes(damaged))
    for length in range(0, len(data), 7):
        with pytest.raises(UsageError, match="truncated|begin like|checksum"):
            decode_file(data[:length])
    with pytest.raises(UsageError, match="3 bytes follow its end"):
        decode_file(data + b"abc")


def forged(change: Any) -> bytes:
    """A file with right checksums whose header was changed."""
    data = encode_file({"w": shared(40, 30), "b": torch.ones(3)}, "{}")
    header, start = coded_file._header(data)
    change(header)
    text = coded_file.json.dumps(header).encode()
    packed_text = zlib.compress(text)
    begin = coded_file.MAGIC + coded_file.SIZES.pack(1, len(packed_text), len(text))
    checksum = coded_file.CHECKSUM.pack(zlib.crc32(packed_text, zlib.crc32(begin)))
    return begin + checksum + packed_text + data[start:]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("shape", [2**40, 2**40], "contradict|GiB"),
        ("shape", [2**30, 2**17], "contradict|GiB"),
        ("shape", [-1, 4], "shape or dtype is damaged"),
        ("shape", [3, 4], "contradict"),
        ("shape", "long", "shape or dtype is damaged"),
        ("dtype", "complex", "shape or dtype is damaged"),
        ("dtype", "float64", "contradict"),
        ("coding", "pickle", "coding is damaged"),
        ("coding", "mask", "coding is damaged"),
        ("values", 2**30, "contradict"),
        ("values", True, "contradict"),
        ("nonzero", 2**40, "contradict"),
        ("nonzero", 5, "do not match|need more|not those of|does not end|different numbers"),
        ("runs", 2**47, "contradict"),
        ("largest", 7, "contradict"),
        ("columns", 3, "contradict"),
        ("streams", [[1, 2, 3]], "list of tensors is damaged"),
        ("streams", [[10**15, 0]], "truncated"),
        ("name", "b", "twice"),
        ("name", 4, "twice or without"),
    ],
)
def test_a_forged_header_is_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        decode_file(forged(lambda header: header["tensors"][0].update({key: value})))


def test_other_forged_headers_are_refused() -> None:
    with pytest.raises(UsageError, match="lacks the metadata or the tensors"):
        decode_file(forged(lambda header: header.pop("metadata")))
    with pytest.raises(UsageError, match="list of tensors is damaged"):
        decode_file(forged(lambda header: header.update(tensors={"w": 1})))


def test_a_small_file_unpacks_no_more_than_its_header_says() -> None:
    tensors = {"w": torch.zeros(2**20, dtype=torch.int64)}
    data = bytearray(encode_file(tensors, "{}"))
    assert len(data) < 2**16
    with pytest.raises(UsageError, match="does not unpack to 3 bytes"):
        coded_file.tensor_coding.inflated(zlib.compress(bytes(2**24)), 3)


def test_an_unsupported_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="dtype complex64 cannot be coded"):
        encode_file({"w": torch.zeros(2, dtype=torch.complex64)}, "{}")
