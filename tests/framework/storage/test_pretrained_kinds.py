"""--pretrained takes whatever torch.save can write: converted where that is clear, else refused in one line."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.framework.storage.locate import find_pretrained
from secateur.framework.storage.pretrained import load_tensors
from secateur.utils.errors import UsageError
from secateur.utils.files.regular_file import is_from_torch
from tests.networks import ConvNet, same, seeded, snapshot

NAME = "d.weight"


def state() -> dict[str, Tensor]:
    """A state dict whose values are exact in half precision."""
    return {n: t.half().to(t.dtype) for n, t in seeded(ConvNet, 5).state_dict().items()}


def put(change: Callable[[Tensor], Any]) -> dict[str, Any]:
    """The state dict with one tensor changed."""
    tensors: dict[str, Any] = state()
    return tensors | {NAME: change(tensors[NAME])}


def cyclic() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


GOOD: dict[str, Callable[[], Any]] = {
    "all half, counters too": lambda: {name: tensor.half() for name, tensor in state().items()},
    "all bfloat16 and back": lambda: put(lambda t: t.to(torch.float64)),
    "float64": lambda: {n: t.double() if t.is_floating_point() else t for n, t in state().items()},
    "COO": lambda: put(lambda t: t.to_sparse()),
    "CSR": lambda: put(lambda t: t.to_sparse_csr()),
    "CSC": lambda: put(lambda t: t.to_sparse_csc()),
    "half COO": lambda: put(lambda t: t.half().to_sparse()),
    "negative view": lambda: put(lambda t: torch._neg_view(-t)),
    "transposed": lambda: put(lambda t: t.t().contiguous().t()),
    "parameter": lambda: put(nn.Parameter),
    "one name deep": lambda: {"epoch": 3, "model_state_dict": state()},
    "two names deep": lambda: {"model": {"state_dict": state()}},
    "three names deep": lambda: {"state": {"net": {"model": state()}}},
    "wrapped": lambda: {"state_dict": {f"module.{name}": tensor for name, tensor in state().items()}},
}  # fmt: skip

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "float8": (lambda: put(lambda t: t.to(torch.float8_e4m3fn)), f"'{NAME}' is torch.float8_e4m3fn, expected"),
    "integers": (lambda: put(lambda t: t.long()), f"'{NAME}' is torch.int64"),
    "truth values": (lambda: put(lambda t: t > 0), f"'{NAME}' is torch.bool"),
    "complex": (lambda: put(lambda t: t.to(torch.complex64)), f"'{NAME}' is torch.complex64"),
    "conjugate view": (lambda: put(lambda t: t.to(torch.complex64).conj()), f"'{NAME}' is torch.complex64"),
    "beyond float32": (lambda: put(lambda t: t.double() * 1e300), f"'{NAME}' has values beyond the range"),
    "NaN": (lambda: put(lambda t: t * float("nan")), f"'{NAME}' contains NaN"),
    "infinity": (lambda: put(lambda t: t * float("inf")), f"'{NAME}' contains infinity"),
    "NaN in a sparse one": (lambda: put(lambda t: (t * float("nan")).to_sparse()), f"'{NAME}' contains NaN"),
    "meta": (lambda: put(lambda t: t.to("meta")), f"'{NAME}' is meta"),
    "all meta": (lambda: {n: t.to("meta") for n, t in state().items()}, "is meta; dense"),
    "nested": (lambda: put(lambda t: torch.nested.nested_tensor([t[:2], t[:3]])), f"'{NAME}' is nested"),
    "jagged": (
        lambda: put(lambda t: torch.nested.nested_tensor([t[:2], t[:3]], layout=torch.jagged)),
        f"'{NAME}' is NestedTensor",
    ),
    "quantized": (lambda: put(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "is quantized"),
    "enormous and sparse": (
        lambda: put(lambda t: torch.sparse_coo_tensor([[0], [0]], [1.0], (2**30, 2**30))),
        f"'{NAME}' has 1073741824 outputs",
    ),
    "enormous view": (lambda: put(lambda t: t[:1, :1].expand(2**40, 2**20)), "has 1099511627776 outputs"),
    "0-d": (lambda: put(lambda t: torch.tensor(1.0)), f"'{NAME}' is ()"),
    "numpy": (lambda: put(lambda t: t.numpy()), "contains objects other than tensors"),
    "uninitialised": (lambda: put(lambda t: nn.UninitializedParameter()), "contains objects other than tensors"),
    "list of tensors": (lambda: put(lambda t: [t]), f"'{NAME}' is list"),
    "a module": (lambda: nn.Linear(2, 2), "contains objects other than tensors"),
    "nothing": (lambda: {}, "contains dict, not a state dict with tensors"),
    "nothing, deep": (lambda: {"model": {"state_dict": {}}}, "contains dict, not a state dict"),
    "None": (lambda: None, "contains NoneType"),
    "a number": (lambda: 3, "contains int"),
    "a tensor": (lambda: torch.ones(2), "contains Tensor"),
    "a list": (lambda: [state()], "contains list"),
    "a cycle": (cyclic, "'model' is dict"),
    "unknown nesting": (lambda: {"weights": state()}, "'weights' is dict"),
    "numbers for keys": (lambda: {1: torch.ones(2)}, "a key of type int"),
    "tensors for keys": (lambda: {torch.ones(9): torch.ones(2)}, "a key of type Tensor"),
    "tuples for keys": (lambda: {(torch.ones(9), 1): torch.ones(2)}, "a key of type tuple"),
    "None for a key": (lambda: {**state(), None: torch.ones(2)}, "a key of type NoneType"),
    "lines in a key": (lambda: {**state(), "a\nb": torch.ones(2)}, "the model lacks 'a b'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch's own, of layouts in beta
@pytest.mark.parametrize("case", GOOD)
def test_what_means_the_same_weights_is_converted(case: str, tmp_path: Path) -> None:
    file, model = tmp_path / "w.pt", seeded(ConvNet, 1)
    torch.save(GOOD[case](), file)
    assert is_from_torch(file)
    load_tensors(file, model)
    expected = seeded(ConvNet, 1)
    expected.load_state_dict(state())
    assert same(snapshot(model), snapshot(expected))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BAD)
def test_anything_else_is_one_line_and_changes_nothing(case: str, tmp_path: Path) -> None:
    make, words = BAD[case]
    file, model = tmp_path / "w.pt", seeded(ConvNet, 1)
    torch.save(make(), file)
    with pytest.raises(UsageError) as raised:
        load_tensors(file, model)
    message = str(raised.value)
    assert words in message and str(file) in message
    assert "\n" not in message and "tensor(" not in message
    assert same(snapshot(model), snapshot(seeded(ConvNet, 1)))


def test_rounded_values_are_told(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(put(lambda t: t.double() + 1e-12), file)
    with pytest.warns(UserWarning, match=f"'{NAME}' from float64 to float32"):
        load_tensors(file, seeded(ConvNet))


def test_sparse_tensors_with_indices_out_of_range_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    shape = state()[NAME].shape
    wrong = torch.sparse_coo_tensor([[10**6], [0]], [1.0], shape, check_invariants=False)
    torch.save(put(lambda t: wrong), file)
    with pytest.raises(UsageError, match="cannot read"):
        load_tensors(file, seeded(ConvNet))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_an_archive_that_unpacks_to_much_more_is_refused(method: int, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(state() | {"more": torch.zeros(2**22)}, file)
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", method) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(UsageError, match="bomb.pt unpacks to .* bytes, at most"):
        load_tensors(tmp_path / "bomb.pt", seeded(ConvNet))


@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["a named pipe", "a loop", "there is no file"])
def test_what_is_no_regular_file_is_not_opened(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if kind == "a named pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "a loop" else tmp_path / "nowhere")
    for call in (lambda: find_pretrained(str(path), "LeNet5"), lambda: load_tensors(path, seeded(ConvNet))):
        with pytest.raises(UsageError, match=f"{path}.* is {kind}|{kind} {path}"):
            call()


def archive() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    return buffer.getvalue()


@given(place=st.integers(1, 400), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_archive_is_read_or_refused(place: int, byte: int, tmp_path: Path) -> None:
    data = bytearray(archive())
    data[-place] = byte
    file = tmp_path / "w.pt"
    file.write_bytes(data)
    assert is_from_torch(file) in (True, False)
    with pytest.raises(UsageError):
        load_tensors(file, seeded(ConvNet))
