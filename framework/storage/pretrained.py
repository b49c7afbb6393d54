"""Weights from elsewhere: a safetensors file or a state dict of torch, into a new dense network."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.storage.checkpoint import check_fits
from secateur.framework.storage.precision import check_finite, converted
from secateur.utils.errors import UsageError
from secateur.utils.files.formats import is_safetensors
from secateur.utils.files.regular_file import check_regular, check_zip
from secateur.utils.suggest import one_line

#: under which training scripts keep the network beside the epoch, the optimizer and so on
NESTED = ("state_dict", "model_state_dict", "model", "net", "state")
#: old files of DenseNets have a dot in names that cannot have one any more: norm.1.weight
DOTTED = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
#: heads that only the training of googlenet and inception_v3 uses, and that are not built here
AUXILIARY = re.compile(r"(?:aux[12]|AuxLogits)\.")
COUNTER = "num_batches_tracked"
SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
#: bytes to which any zip archive of tensors may unpack
LEAST = 2**20


def load_tensors(file: Path, model: nn.Module, new_head: bool = False) -> None:
    """Fill a dense network with the tensors of a file from anywhere, by name; all must fit.

    new_head: leave the last layer as it is, and what the file has for it aside.
    Sparse tensors become dense, and float16, bfloat16, float32 and float64 are converted to the dtypes of the
    network; values that this rounds give a warning. Raises UsageError for a file that holds anything but tensors,
    and for tensors that do not fit, of any other dtype, or with NaN or infinity in them.
    """
    try:
        _load_tensors(file, model, new_head)
    except UsageError as error:  # it may quote names from the file, with whatever is in them
        raise UsageError(one_line(error)) from error


def _load_tensors(file: Path, model: nn.Module, new_head: bool) -> None:
    state = model.state_dict()
    values = _as_named_now(read_tensors(file), state)
    head = prunable_weights(model)
    last = list(head)[-1].rpartition(".")[0] if head else ""
    own = {name: tensor for name, tensor in state.items() if name.startswith(f"{last}.")}
    if new_head:
        values = {name: tensor for name, tensor in values.items() if not name.startswith(f"{last}.")} | own
    else:
        _check_head(model, own, values, file)
    wanted = {name: tensor.dtype for name, tensor in state.items()}
    check_fits(model, {}, values, wanted, file)  # before sparse tensors of any shape are made dense
    values = converted({name: _dense(tensor) for name, tensor in values.items()}, wanted, file)
    check_finite(values, file)
    model.load_state_dict(values)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that torch saved, by name, on the CPU.

    Of a pickle only tensors and plain containers are made: a file that asks for anything else is refused.
    """
    size = check_regular(file)
    try:
        if is_safetensors(file):
            return load_file(str(file))
        if zipfile.is_zipfile(file):  # torch.save packs nothing: its entries are no larger than the file
            with file.open("rb") as opened:
                check_zip(opened, file, max(size, LEAST))
        with torch.sparse.check_sparse_tensor_invariants(True):  # without, bad indices are read and written
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # both raise what their parsers happen to raise
        why = one_line(error, 120)
        raise UsageError(f"cannot read {file}: damaged, or more in it than tensors; save "
                         f"model.state_dict() instead ({why})") from error  # fmt: skip
    return _tensors_of(_innermost(content), file)


def _innermost(content: Any) -> Any:
    """The state dict of a file that keeps it under one of `NESTED`, or under several, one in the other."""
    for _ in NESTED:
        inner = [content.get(key) for key in NESTED] if isinstance(content, dict) else []
        content = next((entry for entry in inner if isinstance(entry, dict)), content)
    return content


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The content as a mapping from names to tensors; UsageError where it is none."""
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{file} holds {type(content).__name__}, not a state dict with tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = f"'{name}'" if isinstance(name, str) else f"a key of type {type(name).__name__}"
            raise UsageError(one_line(f"{file}: {shown} is {type(tensor).__name__}, not a named tensor: "
                                      f"a state dict is needed, alone or under {', '.join(NESTED)}"))  # fmt: skip
    return {name: _plain(name, tensor, file) for name, tensor in content.items()}


def _plain(name: str, tensor: Tensor, file: Path) -> Tensor:
    """The tensor as an ordinary or a sparse one of torch's own class; UsageError for other kinds."""
    kind = None
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        kind = type(tensor).__name__
    elif tensor.is_meta:
        kind = "on the meta device, without values"
    elif tensor.is_nested:
        kind = "a nested tensor"
    elif tensor.is_quantized:
        kind = f"quantized ({str(tensor.dtype).removeprefix('torch.')})"
    elif tensor.layout not in (torch.strided, *SPARSE):
        kind = str(tensor.layout)
    if kind is not None:
        raise UsageError(f"{file}: '{name}' is {kind}; dense or sparse tensors with values are needed")
    return tensor.detach()


def _dense(tensor: Tensor) -> Tensor:
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.resolve_conj().resolve_neg()


def _as_named_now(values: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names the network has: those of wrappers, old versions and unused heads mended."""
    if all(name.startswith("module.") for name in values):  # as DataParallel saves them
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    values = {DOTTED.sub(r"\1\2", name) if name not in state else name: t for name, t in values.items()}
    values = {name: t for name, t in values.items() if name in state or not AUXILIARY.match(name)}
    # files older than the counter, or with all tensors made floats: it has no part in what a network computes
    counters = {
        name: tensor for name, tensor in state.items()
        if name.endswith(COUNTER) and (name not in values or values[name].is_floating_point())
    }  # fmt: skip
    return values | counters


def _check_head(model: nn.Module, own: dict[str, Tensor], values: dict[str, Tensor], file: Path) -> None:
    """Raise UsageError, with the way out, for a file whose network tells another number of classes apart."""
    for name, tensor in own.items():
        given = values.get(name, tensor)
        if given.dim() == tensor.dim() and given.shape[:1] != tensor.shape[:1]:
            raise UsageError(f"{file} does not fit {type(model).__name__}: '{name}' has {len(given)} outputs, "
                             f"{len(tensor)} classes are needed; --new_head starts this layer anew")  # fmt: skip
