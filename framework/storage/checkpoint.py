"""Networks on disk: safetensors and JSON, never pickle; a file from a stranger can at worst be refused.

A file holds the tensors, for each cut dimension the original indices that were kept, and the masks as packed
bits. Its one metadata key, `secateur`, names the architecture and the dtypes of the floating-point tensors that
are not float32. Equal models give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.network.ordinary_tensors import ordinary_mode
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.adapters.torch_layers import follow_shapes
from secateur.framework.storage.precision import converted, dtype_named, fits, unusual_dtypes
from secateur.utils.errors import UsageError
from secateur.utils.files.atomic import replacing
from secateur.utils.files.bounded_yaml import RESULTS, parse_json
from secateur.utils.files.regular_file import check_regular
from secateur.utils.suggest import one_line

FORMAT = 1
KEY = "secateur"
KEPT, MASK = "secateur.kept/", "secateur.mask/"


@ordinary_mode()
def save_model(model: nn.Module, path: str | Path) -> Path:
    """Write the network, cut and masked as it is, into one safetensors file; the old file stays until the new
    one is complete. Returns the path.

    Every tensor is written in its own dtype, and the file records it: a network in half precision, or with layers
    of several precisions, is loaded in the same dtypes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = serialize(model)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def serialize(model: nn.Module) -> bytes:
    """The bytes of the file."""
    tensors, aliases = _unique(model)
    lineage = lineage_of(model)
    dtypes = unusual_dtypes(tensors)
    for (name, dim), index in lineage.kept.items():
        tensors[f"{KEPT}{dim}/{name}"] = index.to(torch.int64)
    for name, mask in Masks(model).items():
        tensors[f"{MASK}{name}"] = _pack(mask)
    header = {
        "aliases": aliases,
        "format": FORMAT,
        "model": lineage.name,
        "options": lineage.options,
        **({"dtypes": dtypes} if dtypes else {}),
    }
    try:
        text = json.dumps(header, sort_keys=True)
    except TypeError as error:
        raise UsageError(f"the options of {lineage.name} cannot be saved: {error}") from error
    return bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {KEY: text}))


def file_size(model: nn.Module) -> int:
    """Bytes of the file that `save_model` would write."""
    return len(serialize(model))


def load_model(path: str | Path, model: nn.Module | None = None, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Rebuild a saved network on the CPU, in training mode as constructors leave it.

    The architecture comes from the registry by the name in the file; a network outside the registry is given
    dense as `model`, and becomes the saved one (its parameters are new objects: make the optimizer afterwards).

    dtype: of all floating-point tensors; None: the dtypes in which `save_model` was given them, float32 unless
    the file records another, whatever the dtypes of `model`. Tensors that another program has converted since
    between float16, bfloat16, float32 and float64 are converted back; values that this rounds give a warning.

    Raises UsageError for a missing, damaged or foreign file, for tensors of any other dtype or with values beyond
    the range of the wanted one, and for a file that does not fit the model, which then stays as it was.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype is a floating-point dtype such as torch.float32, got {one_line(dtype)}")
    try:
        return _load(path, model, dtype)
    except UsageError as error:  # it may quote names from a stranger's file, with whatever is in them
        raise UsageError(one_line(error)) from error


def _load(path: str | Path, model: nn.Module | None, dtype: torch.dtype | None) -> nn.Module:
    tensors, header = read_file(path)
    kept, masks, values = _sorted_out(tensors, header, path)
    given = model is not None
    if model is None:
        model = _architecture(header, path)
    elif lineage_of(model).kept:
        raise UsageError(f"load_model needs the dense network, and this {type(model).__name__} was cut before")
    everywhere = _under_all_names(kept, header["aliases"])
    wanted = _wanted_dtypes(model, header, dtype)
    check_fits(model, everywhere, values, wanted, path)
    _check_masks(model, masks, values, path)
    values = converted(values, wanted, path)
    if not given and _has_unsaved_buffers(model):  # they have no values on the meta device
        model = _construct(header, path)
    lineage = lineage_of(model)  # of the dense network, while it is one
    _fill(model, values)
    lineage.kept = everywhere
    if header["model"] is not None:
        lineage.name, lineage.options = header["model"], header["options"]
    lineage.output_layers = None
    follow_shapes(model)
    parameters = dict(model.named_parameters())
    held = Masks(model)
    held.drop()
    held.hold({name: _unpack(bits, parameters[name].shape) for name, bits in masks.items()})
    return model


def _architecture(header: dict[str, Any], path: str | Path) -> nn.Module:
    """The dense network without values: a file that does not fit it must not cost memory."""
    if header["model"] is None:
        raise UsageError(f"{path} holds a network outside the registry: pass the dense one to load_model")
    try:
        with torch.device("meta"):
            return _construct(header, path)
    except UsageError:  # the constructor may read values, as networks with stochastic depth do
        return _construct(header, path)


def _construct(header: dict[str, Any], path: str | Path) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            model = build("models", header["model"], **header["options"])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # options from a stranger's file meet a constructor that expects sane ones
        raise UsageError(f"{path}: {header['model']} cannot be built: {one_line(error)}") from error
    assert isinstance(model, nn.Module)
    return model


def _has_unsaved_buffers(model: nn.Module) -> bool:
    saved = model.state_dict()
    return any(buffer.is_meta for name, buffer in model.named_buffers() if name not in saved)


def read_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the header; UsageError if this is no file of ours."""
    path = Path(path)
    check_regular(path)
    with _blaming(path), safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if KEY not in metadata:
        raise UsageError(f"{path} was not written by Secateur: its metadata has no key '{KEY}'")
    header = parse_json(metadata[KEY], f"{path}: its header is damaged", RESULTS)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UsageError(f"{path} has a format this version cannot read (it reads {FORMAT})")
    _check_header(header, path)
    return tensors, header


def is_ours(path: str | Path) -> bool:
    """Whether this is a safetensors file that `save_model` wrote."""
    with _blaming(path), safe_open(str(path), framework="pt") as file:
        return KEY in (file.metadata() or {})


@contextmanager
def _blaming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors raises what its parser and torch happen to raise
        raise UsageError(f"{path} is damaged or no safetensors file: {one_line(error)}") from error


def _check_header(header: dict[str, Any], path: str | Path) -> None:
    for key, kind in (("aliases", dict), ("options", dict), ("model", (str, type(None)))):
        if key not in header or not isinstance(header[key], kind):
            raise UsageError(f"{path}: the header's '{key}' is damaged")
    if not all(isinstance(name, str) for name in header["aliases"].values()):
        raise UsageError(f"{path}: the header has something else than a name where a name belongs")
    dtypes = header.get("dtypes", {})
    if not isinstance(dtypes, dict) or not all(isinstance(x, str) and dtype_named(x) for x in dtypes.values()):
        raise UsageError(f"{path}: the header's 'dtypes' is damaged")


def _unique(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of the state by name; a tensor with several names once, and the other names as its aliases."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{type(model).__name__} keeps '{name}' in its state, which is no tensor")
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses views of one memory; they are saved each by itself
        tensors[name] = tensor.detach().cpu().clone() if storage in storages else tensor.detach().cpu()
        storages.add(storage)
    return tensors, aliases


Kept = dict[tuple[str, int], Tensor]


def _sorted_out(
    tensors: dict[str, Tensor], header: dict[str, Any], path: str | Path
) -> tuple[Kept, dict[str, Tensor], dict[str, Tensor]]:
    kept: Kept = {}
    masks, values = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(KEPT):
            dim, _, target = name.removeprefix(KEPT).partition("/")
            if not (dim.isascii() and dim.isdecimal() and len(dim) <= 2):
                raise UsageError(f"{path}: '{name}' is no index of a dimension")
            kept[target, int(dim)] = tensor
        elif name.startswith(MASK):
            masks[name.removeprefix(MASK)] = tensor
        else:
            values[name] = tensor
    for alias, target in header["aliases"].items():
        if target not in values:
            raise UsageError(f"{path}: '{alias}' stands for '{target}', which is missing")
        values[alias] = values[target]
    return kept, masks, values


def _under_all_names(kept: Kept, aliases: dict[str, str]) -> Kept:
    """What was cut from a tensor, for each of its names."""
    found = dict(kept)
    for (name, dim), index in kept.items():
        first = aliases.get(name, name)
        for other in (first, *(alias for alias, target in aliases.items() if target == first)):
            found[other, dim] = index
    return found


def _check_masks(model: nn.Module, masks: dict[str, Tensor], values: dict[str, Tensor], path: str | Path) -> None:
    """Every mask belongs to a parameter and has one bit for each of its entries."""
    parameters = dict(model.named_parameters())
    for name, bits in masks.items():
        fits = name in parameters and bits.dtype == torch.uint8 and bits.dim() == 1
        if not fits or len(bits) != -(-values[name].numel() // 8):
            raise UsageError(f"{path}: the mask of '{name}' does not fit")


def _wanted_dtypes(model: nn.Module, header: dict[str, Any], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The dtype that each tensor of the model is to have: as asked for, else as recorded."""
    recorded, aliases = header.get("dtypes", {}), header["aliases"]
    wanted = {}
    for name, tensor in model.state_dict().items():
        saved = dtype_named(recorded.get(aliases.get(name, name), "float32"))
        wanted[name] = (dtype or saved or torch.float32) if tensor.is_floating_point() else tensor.dtype
    return wanted


def check_fits(
    model: nn.Module, kept: Kept, values: dict[str, Tensor], wanted: dict[str, torch.dtype], path: str | Path
) -> None:
    """Raise UsageError unless every tensor of the model is in the file, in the shape that the recorded cuts leave
    and in a dtype that can be converted to the one in `wanted`."""
    state = model.state_dict()
    strangers = sorted(set(state) ^ set(values))
    if strangers:
        where = "the file lacks" if strangers[0] in state else "the model lacks"
        raise UsageError(f"{path} does not fit {type(model).__name__}: {where} '{strangers[0]}'")
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    for (name, dim), index in kept.items():
        if name not in shapes or dim >= len(shapes[name]) or not _is_index(index, shapes[name][dim]):
            raise UsageError(f"{path} does not fit {type(model).__name__}: bad indices of '{name}' along {dim}")
        shapes[name][dim] = len(index)
    for name, shape in shapes.items():
        value = values[name]
        if list(value.shape) != shape:
            raise UsageError(
                f"{path} does not fit {type(model).__name__}: '{name}' is {tuple(value.shape)}, "
                f"expected {tuple(shape)}"
            )
        if not fits(value.dtype, wanted[name]):
            raise UsageError(
                f"{path} does not fit {type(model).__name__}: '{name}' is {value.dtype}, expected {wanted[name]}"
            )


def _is_index(index: Tensor, size: int) -> bool:
    if index.dtype != torch.int64 or index.dim() != 1 or len(index) > size:
        return False
    return bool((index >= 0).all() and (index < size).all() and (index.diff() > 0).all())


def _fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Put the saved tensors in place; tied parameters stay tied."""
    made: dict[int, nn.Parameter] = {}
    for name, old in model.state_dict(keep_vars=True).items():
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        # a copy: what safetensors gives lies in the mapped file
        value = values[name].clone().to("cpu" if old.is_meta else old.device)
        if isinstance(old, nn.Parameter):
            if id(old) not in made:
                made[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad)
            owner._parameters[attribute] = made[id(old)]
        else:
            owner._buffers[attribute] = value


def _pack(mask: Tensor) -> Tensor:
    """0/1 tensor to bits, eight a byte, the first entry in the lowest bit."""
    flat = (mask.detach().cpu() != 0).flatten().to(torch.uint8)
    flat = nn.functional.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8)).sum(dim=1).to(torch.uint8)


def _unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    flat = (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return flat.flatten()[: shape.numel()].reshape(shape).bool()
