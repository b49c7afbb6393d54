"""Weights from elsewhere: a safetensors file or a state dict of torch, into a new dense network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from framework.checkpoint import check_fits
from framework.prunable import prunable_weights
from framework.run_folder import is_safetensors
from utils.errors import UsageError
from utils.suggest import one_line

#: under which training scripts keep the network beside the epoch, the optimizer and so on
NESTED = ("state_dict", "model_state_dict", "model", "net", "state")
#: old files of DenseNets have a dot in names that cannot have one any more: norm.1.weight
DOTTED = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
#: heads that only the training of googlenet and inception_v3 uses, and that are not built here
AUXILIARY = re.compile(r"(?:aux[12]|AuxLogits)\.")
COUNTER = "num_batches_tracked"


def load_tensors(file: Path, model: nn.Module, new_head: bool = False) -> None:
    """Fill a dense network with the tensors of a file from anywhere, by name; all must fit.

    new_head: leave the last layer as it is, and what the file has for it aside.
    Raises UsageError for a file that holds anything but tensors and for tensors that do not fit.
    """
    state = model.state_dict()
    values = _as_named_now(read_tensors(file), state)
    head = prunable_weights(model)
    last = list(head)[-1].rpartition(".")[0] if head else ""
    own = {name: tensor for name, tensor in state.items() if name.startswith(f"{last}.")}
    if new_head:
        values = {name: tensor for name, tensor in values.items() if not name.startswith(f"{last}.")} | own
    else:
        _check_head(model, own, values, file)
    check_fits(model, {}, values, file)
    model.load_state_dict(values)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that torch saved, by name, on the CPU.

    Of a pickle only tensors and plain containers are made: a file that asks for anything else is refused.
    """
    try:
        if is_safetensors(file):
            return load_file(str(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise what their parsers happen to raise
        why = one_line(error, 120)
        raise UsageError(f"cannot read {file}: damaged, or more in it than tensors; save "
                         f"model.state_dict() instead ({why})") from error  # fmt: skip
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return _tensors_of(content, file)


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The content as a mapping from names to tensors; UsageError where it is none."""
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{file} holds {type(content).__name__}, not a state dict with tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UsageError(one_line(f"{file}: {name!r} is {type(tensor).__name__}, not a named tensor: "
                                      f"a state dict is needed, alone or under {', '.join(NESTED)}"))  # fmt: skip
    return dict(content)


def _as_named_now(values: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names the network has: those of wrappers, old versions and unused heads mended."""
    if all(name.startswith("module.") for name in values):  # as DataParallel saves them
        values = {name.removeprefix("module."): tensor for name, tensor in values.items()}
    values = {DOTTED.sub(r"\1\2", name) if name not in state else name: t for name, t in values.items()}
    values = {name: t for name, t in values.items() if name in state or not AUXILIARY.match(name)}
    # files older than the counter: it has no part in what a network computes
    counters = {name: t for name, t in state.items() if name.endswith(COUNTER) and name not in values}
    return values | counters


def _check_head(model: nn.Module, own: dict[str, Tensor], values: dict[str, Tensor], file: Path) -> None:
    """Raise UsageError, with the way out, for a file whose network tells another number of classes apart."""
    for name, tensor in own.items():
        given = values.get(name, tensor)
        if given.dim() == tensor.dim() and given.shape[:1] != tensor.shape[:1]:
            raise UsageError(f"{file} does not fit {type(model).__name__}: '{name}' has {len(given)} outputs, "
                             f"{len(tensor)} classes are needed; --new_head starts this layer anew")  # fmt: skip
