"""Saving and loading of networks as safetensors and JSON, without pickle: untrusted files are safe to load.

A file contains the tensors, the kept original indices of each cut dimension, and the masks as packed bits. Its
only metadata key, `secateur`, holds the architecture and the dtypes of floating-point tensors other than float32.
Equal models give equal bytes.
"""

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from secateur.framework.compression.reading import is_compressed, read_compressed
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.network.ordinary_tensors import ordinary_mode
from secateur.framework.network.preserve import replace_tensors
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.adapters.torch_layers import follow_shapes
from secateur.framework.storage.precision import converted, dtype_named, fits
from secateur.utils.errors import UsageError
from secateur.utils.files.atomic import replacing
from secateur.utils.files.bounded_yaml import RESULTS, parse_json
from secateur.utils.files.regular_file import reading
from secateur.utils.suggest import one_line, one_line_errors
from secateur.utils.tensors import dtype_name

FORMAT = 1
KEY = "secateur"
NOT_OURS = "damaged or not a safetensors file"
KEPT, MASK = "secateur.kept/", "secateur.mask/"


@ordinary_mode()
def save_model(model: nn.Module, path: str | Path) -> Path:
    """Save a network, dense or pruned, to a safetensors file.

    The file contains the tensors in their dtypes, the record of the cuts and the masks. For a model from `build`
    it also contains the name and the options, so that `load_model` needs only the file. An existing file is
    replaced atomically.

    Args:
        model: network to save.
        path: file to write; missing parent folders are created.

    Returns:
        The path.

    Raises:
        UsageError: if the state of the model has entries that are not tensors, or if JSON cannot represent its
            options.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from secateur import build, load_model, save_model
        >>> model = build("models", "LeNet300", in_channels=1, num_classes=10, image_size=28)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_model(model, Path(folder) / "dense.safetensors")
        ...     loaded = load_model(file)
        >>> all(a.equal(b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
        True
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = serialize(model)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def serialize(model: nn.Module) -> bytes:
    """Return the bytes of the file that `save_model` writes."""
    tensors, text = contents(model)
    return bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {KEY: text}))


def contents(model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a checkpoint by name, those of cuts and masks included, and its header as JSON."""
    tensors, aliases = _unique(model)
    lineage = lineage_of(model)
    unusual = {
        name: dtype_name(tensor.dtype)
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    for (name, dim), index in lineage.kept.items():
        tensors[f"{KEPT}{dim}/{name}"] = index.to(torch.int64)
    for name, mask in Masks(model).items():
        tensors[f"{MASK}{name}"] = _pack(mask)
    header = {
        "aliases": aliases,
        "format": FORMAT,
        "model": lineage.name,
        "options": lineage.options,
        **({"dtypes": unusual} if unusual else {}),
    }
    try:
        return tensors, json.dumps(header, sort_keys=True)
    except TypeError as error:
        raise UsageError(f"the options of {lineage.name} cannot be saved: {error}") from error


def file_size(model: nn.Module) -> int:
    """Return the number of bytes of the file that `save_model` writes."""
    return len(serialize(model))


@one_line_errors()
def load_model(path: str | Path, model: nn.Module | None = None, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a network that was saved by `save_model` or `save_compressed`, dense or pruned, with its masks.

    Tensors that another program has converted between float16, bfloat16, float32 and float64 are converted to the
    requested dtype; a warning is issued if this rounds values.

    Args:
        path: safetensors file, or a compressed file.
        model: dense network of the saved architecture, for a network that was not made by `build`; it is changed
            in place. Its parameters are replaced, so create the optimizer afterwards. Default: build the
            architecture that is named in the file.
        dtype: dtype of all floating-point tensors. Default: the dtypes at the time of saving.

    Returns:
        The network, in training mode: `model` if given, else a new network on the CPU.

    Raises:
        UsageError: if the file is missing, damaged or not a checkpoint of Secateur, if it does not match the
            model, which is then left unchanged, or if tensors have unsupported dtypes or values beyond the range
            of the requested dtype.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from secateur import load_model, prune, save_model
        >>> network = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> model, example = network(), torch.randn(1, 4)
        >>> report = prune(model, "L1", 0.5, example_input=example)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_model(model, Path(folder) / "pruned.safetensors")
        ...     loaded = load_model(file, model=network())
        >>> loaded[0]
        Linear(in_features=4, out_features=4, bias=True)
        >>> torch.equal(loaded(example), model(example))
        True
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype must be a floating-point dtype such as torch.float32, got {one_line(dtype)}")
    tensors, header = read_file(path)
    kept, masks, values = _sorted_out(tensors, path)
    given = model is not None
    if model is None:
        model = _architecture(header, path)
    elif lineage_of(model).kept:
        raise UsageError(f"load_model needs the dense network, but this {type(model).__name__} was cut before")
    everywhere = _under_all_names(kept, header["aliases"])
    wanted = _wanted_dtypes(model, header, dtype)
    check_fits(model, everywhere, values, wanted, path)
    _check_masks(model, masks, values, path)
    values = converted(values, wanted, path)
    saved = model.state_dict()
    if not given and any(buffer.is_meta for name, buffer in model.named_buffers() if name not in saved):
        model = _construct(header, path)  # buffers outside the file have no values on the meta device
    lineage = lineage_of(model)  # recorded from the dense network before it is filled
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
    """Build the dense network without values, so that a file that does not match it costs no memory."""
    if header["model"] is None:
        raise UsageError(f"{path} contains a network outside the registry: pass the dense network to load_model")
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
    except Exception as error:  # untrusted options may raise anything in the constructor
        raise UsageError(f"{path}: {header['model']} cannot be built: {one_line(error)}") from error
    assert isinstance(model, nn.Module)
    return model


def read_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return all tensors under all names, and the header.

    Raises UsageError unless `save_model` or `save_compressed` wrote the file.
    """
    path = Path(path)
    tensors, text = read_compressed(path) if is_compressed(path) else _read_safetensors(path)
    header = parse_json(text, f"{path}: its header is damaged", RESULTS)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UsageError(f"{path} has a format that this version cannot read (it reads format {FORMAT})")
    _check_header(header, path)
    for alias, target in header["aliases"].items():
        if target not in tensors:
            raise UsageError(f"{path}: '{alias}' is an alias of '{target}', which is missing")
        tensors[alias] = tensors[target]
    return tensors, header


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str]:
    with reading(path, NOT_OURS), safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if KEY not in metadata:
        raise UsageError(f"{path} was not written by Secateur: its metadata lacks the key '{KEY}'")
    return tensors, metadata[KEY]


def is_ours(path: str | Path) -> bool:
    """Whether a file was written by `save_model` or `save_compressed`."""
    if is_compressed(path):
        return True
    with reading(path, NOT_OURS), safe_open(str(path), framework="pt") as file:
        return KEY in (file.metadata() or {})


def _check_header(header: dict[str, Any], path: str | Path) -> None:
    header.setdefault("dtypes", {})
    for key, kind in (("aliases", dict), ("options", dict), ("model", (str, type(None))), ("dtypes", dict)):
        if key not in header or not isinstance(header[key], kind):
            raise UsageError(f"{path}: the header's '{key}' is damaged")
    if not all(isinstance(name, str) for name in header["aliases"].values()):
        raise UsageError(f"{path}: the header's 'aliases' must be names")
    if not all(isinstance(dtype, str) and dtype_named(dtype) for dtype in header["dtypes"].values()):
        raise UsageError(f"{path}: the header's 'dtypes' is damaged")


def _unique(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of the state by their first name, and the other names of shared tensors as aliases."""
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{type(model).__name__} has '{name}' in its state, which is not a tensor")
        first = names.setdefault(id(tensor), name)
        if first != name:
            aliases[name] = first
            continue
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory; views are saved as copies
        tensors[name] = tensor.detach().cpu().clone() if storage in storages else tensor.detach().cpu()
        storages.add(storage)
    return tensors, aliases


Kept = dict[tuple[str, int], Tensor]


def _sorted_out(tensors: dict[str, Tensor], path: str | Path) -> tuple[Kept, dict[str, Tensor], dict[str, Tensor]]:
    kept: Kept = {}
    masks, values = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(KEPT):
            dim, _, target = name.removeprefix(KEPT).partition("/")
            if not (dim.isascii() and dim.isdecimal() and len(dim) <= 2):
                raise UsageError(f"{path}: the dimension in '{name}' is not an index")
            kept[target, int(dim)] = tensor
        elif name.startswith(MASK):
            masks[name.removeprefix(MASK)] = tensor
        else:
            values[name] = tensor
    return kept, masks, values


def _under_all_names(kept: Kept, aliases: dict[str, str]) -> Kept:
    """Return the kept indices of each tensor under all of its names."""
    indices = dict(kept)
    for (name, dim), index in kept.items():
        first = aliases.get(name, name)
        for other in (first, *(alias for alias, target in aliases.items() if target == first)):
            indices[other, dim] = index
    return indices


def _check_masks(model: nn.Module, masks: dict[str, Tensor], values: dict[str, Tensor], path: str | Path) -> None:
    """Raise UsageError unless every mask belongs to a parameter and has one bit per entry."""
    parameters = dict(model.named_parameters())
    for name, bits in masks.items():
        fits = name in parameters and bits.dtype == torch.uint8 and bits.dim() == 1
        if not fits or len(bits) != -(-values[name].numel() // 8):
            raise UsageError(f"{path}: the mask of '{name}' does not fit")


def _wanted_dtypes(model: nn.Module, header: dict[str, Any], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Return the dtype of each tensor of the model: the requested one, or else the recorded one."""
    recorded, aliases = header["dtypes"], header["aliases"]
    wanted = {}
    for name, tensor in model.state_dict().items():
        saved = dtype_named(recorded.get(aliases.get(name, name), "float32"))
        wanted[name] = (dtype or saved or torch.float32) if tensor.is_floating_point() else tensor.dtype
    return wanted


def check_fits(
    model: nn.Module, kept: Kept, values: dict[str, Tensor], wanted: dict[str, torch.dtype], path: str | Path
) -> None:
    """Raise UsageError unless the file has every tensor of the model, in a convertible dtype and the right shape.

    The shape is that after the recorded cuts, and the dtype is converted to the one in `wanted`.
    """
    state, misfit = model.state_dict(), f"{path} does not fit {type(model).__name__}"
    unmatched = sorted(set(state) ^ set(values))
    if unmatched:
        where = "the file lacks" if unmatched[0] in state else "the model lacks"
        raise UsageError(f"{misfit}: {where} '{unmatched[0]}'")
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    for (name, dim), index in kept.items():
        if name not in shapes or dim >= len(shapes[name]) or not _is_index(index, shapes[name][dim]):
            raise UsageError(f"{misfit}: bad indices of '{name}' along {dim}")
        shapes[name][dim] = len(index)
    for name, shape in shapes.items():
        value = values[name]
        if list(value.shape) != shape:
            raise UsageError(f"{misfit}: '{name}' is {tuple(value.shape)}, expected {tuple(shape)}")
        if not fits(value.dtype, wanted[name]):
            raise UsageError(f"{misfit}: '{name}' is {value.dtype}, expected {wanted[name]}")


def _is_index(index: Tensor, size: int) -> bool:
    if index.dtype != torch.int64 or index.dim() != 1 or len(index) > size:
        return False
    return bool((index >= 0).all() and (index < size).all() and (index.diff() > 0).all())


def _fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Replace the tensors of the model by the saved ones; tied parameters remain tied."""
    new: dict[int, Tensor] = {}
    for name, old in model.state_dict(keep_vars=True).items():
        if id(old) not in new:
            # a copy, since tensors from safetensors are views of the mapped file
            value = values[name].clone().to("cpu" if old.is_meta else old.device)
            is_parameter = isinstance(old, nn.Parameter)
            new[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad) if is_parameter else value
    replace_tensors(model, new)


def _pack(mask: Tensor) -> Tensor:
    """Pack a 0/1 tensor into bits, eight per byte, with the first entry in the lowest bit."""
    return torch.from_numpy(numpy.packbits((mask.detach().cpu() != 0).numpy(), bitorder="little"))


def _unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    flat = numpy.unpackbits(bits.numpy(), count=shape.numel(), bitorder="little")
    return torch.from_numpy(flat).bool().reshape(shape)
