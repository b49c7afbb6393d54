"""The search for faulty convolutions finds the known one, and what it found is what the checks avoid."""

import re

import pytest
import torch

from benchmarks import convolutions
from benchmarks.convolutions import WRONG, Shape, check_the_check, faults, table, tensors, wrong
from secateur.framework.network.convolution_faults import is_faulty
from tests import ROOT

FAULTY = Shape(3, 16, 1, 2)
needs_avx2 = pytest.mark.skipif(
    not hasattr(torch.cpu, "_is_avx2_supported") or not torch.cpu._is_avx2_supported(), reason="needs AVX2"
)


def test_a_byte_too_many_is_seen() -> None:
    check_the_check()


@needs_avx2
def test_the_known_fault_is_found_and_its_neighbours_are_right() -> None:
    shapes = [FAULTY, Shape(3, 16, 1, 2, channels_last=False), Shape(8, 16, 1, 2), Shape(3, 16, 3, 2)]
    found = faults(shapes, "AVX2")
    assert [(fault.shape, fault.memory) for fault in found] == [(FAULTY, True)]
    assert "| AVX2 | 2-D, float32 | channels_last | 1 | 2 | 1 | memory | weight | 3 | 16 |" in table(
        [FAULTY], "AVX2"
    )


def test_wrong_values_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(4, 4, 3, 1, channels_last=False)
    assert not wrong(shape)
    exact = convolutions.compute

    def off(shape: Shape, dtype: torch.dtype, layout: torch.memory_format) -> list[torch.Tensor]:
        values = exact(shape, dtype, layout)
        if dtype == torch.float32:
            values[2].view(-1)[5] += 2 * WRONG * values[2].abs().max()
        return values

    monkeypatch.setattr(convolutions, "compute", off)
    assert wrong(shape)


def test_every_row_of_the_published_table_is_avoided() -> None:
    text = (ROOT / "docs" / "known_upstream_faults.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| AVX2 \| 2-D, float32 \| channels_last \| 1 \| (.+?) \| 1 \| .* \| (.+?) \| .+ \|$", text, re.M
    )
    assert len(rows) == len(re.findall(r"^\| AVX", text, re.M)) == 7
    for strides, channels in rows:
        stride = [int(number) for number in re.findall(r"\d", strides)]
        for part in channels.split(", "):
            low, _, high = part.partition("-")
            for inputs in range(int(low), int(high or low) + 1):
                weight = tensors(Shape(inputs, 16, 1, 2), torch.float32)[1]
                assert is_faulty(weight, stride), (strides, inputs)
