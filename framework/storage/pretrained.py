"""Loading of third-party weights, from safetensors files or state dicts of torch, into a dense network."""

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
from secateur.utils.files.regular_file import check_regular, check_zip, is_safetensors, reading
from secateur.utils.suggest import one_line, one_line_errors
from secateur.utils.tensors import unusual_kind

#: keys under which training scripts save the state dict, next to the epoch and the optimizer
NESTED = ("state_dict", "model_state_dict", "model", "net", "state")
#: dotted names in old files of DenseNet, which are invalid now: norm.1.weight
DOTTED = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
#: auxiliary heads of googlenet and inception_v3 that only training uses; they are not built here
AUXILIARY_HEAD = re.compile(r"(?:aux[12]|AuxLogits)\.")
COUNTER = "num_batches_tracked"
SPARSE = ("sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
#: number of bytes that every zip archive of tensors may unpack to
LEAST_BYTES = 2**20


@one_line_errors()
def load_tensors(file: Path, model: nn.Module, new_head: bool = False) -> None:
    """Load the tensors of a file into a dense network by name; names and shapes must match.

    `new_head` keeps the last layer of the network and ignores its tensors in the file. Sparse tensors become
    dense, and float16, bfloat16, float32 and float64 are converted to the dtypes of the network, with a warning
    if values are rounded. Raises UsageError if the file contains other objects than tensors, and for tensors that
    do not match, have another dtype, or contain NaN or infinity.
    """
    state = model.state_dict()
    values = _as_named_now(read_tensors(file), state)
    head = prunable_weights(model)
    last = list(head)[-1].rpartition(".")[0] if head else ""
    head_state = {name: tensor for name, tensor in state.items() if name.startswith(f"{last}.")}
    if new_head:
        values = {name: tensor for name, tensor in values.items() if not name.startswith(f"{last}.")} | head_state
    else:
        _check_head(model, head_state, values, file)
    wanted = {name: tensor.dtype for name, tensor in state.items()}
    check_fits(model, {}, values, wanted, file)  # before sparse tensors of arbitrary shape become dense
    values = converted({name: _dense(tensor) for name, tensor in values.items()}, wanted, file)
    check_finite(values, file)
    model.load_state_dict(values)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a state dict of torch, by name, on the CPU.

    Only tensors and plain containers are unpickled; files with other objects are refused.
    """
    size = check_regular(file)
    fault = "it is damaged or contains objects other than tensors; save model.state_dict() instead"
    with reading(file, fault):
        if is_safetensors(file):
            return load_file(str(file))
        if zipfile.is_zipfile(file):  # torch.save does not compress: the entries are no larger than the file
            check_zip(file, max(size, LEAST_BYTES))
        with torch.sparse.check_sparse_tensor_invariants(True):  # otherwise invalid indices access foreign memory
            content = torch.load(file, map_location="cpu", weights_only=True)
    return _tensors_of(_innermost(content), file)


def _innermost(content: Any) -> Any:
    """Return the state dict of a file that has it under one or several nested keys of `NESTED`."""
    for _ in NESTED:
        inner = [content.get(key) for key in NESTED] if isinstance(content, dict) else []
        content = next((entry for entry in inner if isinstance(entry, dict)), content)
    return content


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the content as a mapping from names to tensors; raise UsageError if it is not one."""
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{file} contains {type(content).__name__}, not a state dict with tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = f"'{name}'" if isinstance(name, str) else f"a key of type {type(name).__name__}"
            raise UsageError(one_line(f"{file}: {shown} is {type(tensor).__name__}, not a named tensor: "
                                      f"a state dict is needed, alone or under {', '.join(NESTED)}"))  # fmt: skip
        is_torchs = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        kind = unusual_kind(tensor) if is_torchs else type(tensor).__name__
        if kind and kind not in SPARSE:
            raise UsageError(f"{file}: '{name}' is {kind}; dense or sparse tensors with values are needed")
    return {name: tensor.detach() for name, tensor in content.items()}


def _dense(tensor: Tensor) -> Tensor:
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.resolve_conj().resolve_neg()


def _as_named_now(values: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of the network: without wrappers, old spellings and unused heads."""
    if all(name.startswith("module.") for name in values):  # as DataParallel saves them
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    values = {DOTTED.sub(r"\1\2", name) if name not in state else name: t for name, t in values.items()}
    values = {name: t for name, t in values.items() if name in state or not AUXILIARY_HEAD.match(name)}
    # old files lack the counter, and converted files have it as a float; it does not affect the output
    counters = {
        name: tensor for name, tensor in state.items()
        if name.endswith(COUNTER) and (name not in values or values[name].is_floating_point())
    }  # fmt: skip
    return values | counters


def _check_head(model: nn.Module, head: dict[str, Tensor], values: dict[str, Tensor], file: Path) -> None:
    """Raise UsageError, with a hint, if the file has another number of classes."""
    for name, tensor in head.items():
        given = values.get(name, tensor)
        if given.dim() == tensor.dim() and given.shape[:1] != tensor.shape[:1]:
            raise UsageError(
                f"{file} does not fit {type(model).__name__}: '{name}' has {len(given)} outputs, not the "
                f"{len(tensor)} of the data set; new_head re-initialises it",
                argument="new_head",
            )
