"""Folding: move the constants of removed channels into the biases of the layers that read them.

A channel whose producers have zero weights still has a constant value, from biases, norm shifts and activations.
The constants are observed at the inputs of the readers while the network with zeroed weights runs on several
inputs, so that nothing depends on the architecture.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.batch_norm import batch_norms_after
from secateur.framework.network.layers import TRANSPOSED, shortened, tensor_name
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.outputs import hooked, output_tensors
from secateur.framework.network.preserve import preserved_state, random_numbers_as_before, replaced
from secateur.framework.pruning.channels.consumers import Reader, readers_of
from secateur.framework.pruning.channels.groups import Groups, example_of
from secateur.utils.errors import UsageError

FOLDING_SEED = 20_240_229
#: reason -> reader -> numbers of channels
Lost = dict[str, dict[str, set[int]]]


def moved_constants(
    model: nn.Module, removed: Mapping[str, Tensor], groups: Groups, example: Tensor | None = None
) -> dict[str, Tensor]:
    """Return new values, by name, of the biases and running means that include the constants of removed channels.

    Exact in eval mode, for inputs of the example's size. The model is not changed. Warns of constants that cannot
    be moved; raises UsageError without an example, or if the model rejects it.

    `removed` maps a group name to the removed channels, bool `(channels,)`; `example` is a batch, by default the
    sample with which the groups were traced.
    """
    moved, lost = _analyse(model, removed, groups, example)
    _warn(lost)
    return moved


def foldable(
    model: nn.Module, removed: Mapping[str, Tensor], groups: Groups, example: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the removed channels whose constants can all be moved, so that `cut` with `fold` is exact.

    Arguments as in `moved_constants`; the result has the form of `removed`.
    """
    candidates = {name: off.cpu().clone() for name, off in removed.items() if bool(off.any())}
    while candidates:
        lost = _analyse(model, candidates, groups, example)[1]
        if not lost:
            break
        numbers = set[int]().union(*(channels for layers in lost.values() for channels in layers.values()))
        if numbers:
            _drop(candidates, numbers)
        else:  # no single layer is the reason: keep the groups that can be folded alone
            losses = {name: _analyse(model, {name: off}, groups, example)[1] for name, off in candidates.items()}
            alone = {name: off for name, off in candidates.items() if not losses[name]}
            candidates = alone if len(alone) < len(candidates) else {}
        candidates = {name: off for name, off in candidates.items() if bool(off.any())}
    return candidates


def _drop(removed: Mapping[str, Tensor], numbers: set[int]) -> None:
    """Unmark, in place, the removed channels with these numbers, counted over all groups."""
    start = 0
    for off in removed.values():
        places = off.nonzero().flatten()
        kept = [number - start for number in numbers if start <= number < start + len(places)]
        start += len(places)
        off[places[kept]] = False


def _analyse(
    model: nn.Module, removed: Mapping[str, Tensor], groups: Groups, example: Tensor | None
) -> tuple[dict[str, Tensor], Lost]:
    """Return new values by name, and the constants that cannot be moved."""
    example = example_of(groups) if example is None else example
    if not isinstance(example, Tensor):
        raise UsageError("fold=True needs an example_input, since these groups have no example")
    with preserved_state(model), torch.no_grad(), random_numbers_as_before():
        inputs = [example, _other(example, FOLDING_SEED), _other(example, FOLDING_SEED + 1)]
        bare = _without(model, removed, groups, {}, weights_only=True)
        readers = readers_of(model, removed, groups)
        with hooked((reader.module, reader.look) for reader in readers):
            expected = [_run(model, bare, given) for given in inputs]
        readers = [reader for reader in readers if reader.seen]
        moved, lost = _moves(model, readers, lambda: _run(model, bare, inputs[0]))
        if not lost:
            masked = _without(model, removed, groups, moved, weights_only=False)
            outputs = [_run(model, masked, given) for given in inputs]
            if not all(map(_alike, expected, outputs)):
                lost["read by an operation that is not a convolution or linear layer"] = {}
    return moved, lost


def _without(
    model: nn.Module,
    removed: Mapping[str, Tensor],
    groups: Groups,
    values: Mapping[str, Tensor],
    weights_only: bool,
) -> dict[str, Tensor]:
    """Return a copy of `values` with zeros for removed channels: in all slices, or only in producing weights."""
    parameters = dict(model.named_parameters())
    tensors = {name: value.clone() for name, value in values.items()}
    for name, off in removed.items():
        for tensor, dim, index in groups[name].produced if weights_only else groups[name].slices:
            if tensor in parameters and not (weights_only and parameters[tensor].dim() == 1):
                value = tensors[tensor] if tensor in tensors else parameters[tensor].detach().clone()
                tensors[tensor] = value.index_fill_(dim, index[off].flatten().to(value.device), 0)
    return tensors


def _other(example: Tensor, seed: int) -> Tensor:
    """Return random values in the example's range, or its integers in a random order."""
    generator = torch.Generator().manual_seed(seed)
    flat = example.detach().cpu().flatten()
    if flat.is_complex():
        other = torch.randn(flat.shape, generator=generator, dtype=flat.dtype)
    elif flat.is_floating_point():
        low, high = flat.double().min(), flat.double().max()
        drawn = torch.rand(flat.shape, generator=generator, dtype=torch.float64)
        other = drawn * ((high - low) or 1) + low
    else:
        other = flat[torch.randperm(len(flat), generator=generator)]
        if torch.equal(other, flat):
            other = torch.randint(int(flat.max()) + 1, flat.shape, generator=generator)
    return other.reshape(example.shape).to(example)


def _run(model: nn.Module, tensors: Mapping[str, Tensor], given: Tensor) -> Any:
    """Return the model's output with these tensors in place of its own, which are restored."""
    try:
        with replaced(model, tensors):
            return model(given)
    except Exception as error:  # a third-party forward may raise anything
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{type(model).__name__} rejects an input like the example: {message}") from error


def _moves(model: nn.Module, readers: list[Reader], run: Callable[[], Any]) -> tuple[dict[str, Tensor], Lost]:
    """Return new values by name, and the constants that cannot be moved."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    without_bias = [reader for reader in readers if reader.bias is None]
    norms = batch_norms_after(model, [reader.name for reader in without_bias], run, directly=True)
    moved: dict[str, Tensor] = {}
    lost: Lost = {}
    for reader in readers:
        constants, constant, nonzero = reader.constants()
        _note(lost, "not constant", reader, ~constant)
        change = reader.change(constants)
        if not change.any():
            continue
        reason = _obstacle(reader, constants, change)
        if reason is None and reader.bias is not None and owners[id(reader.bias)] > 1:
            reason = "shared bias"
        elif reason is None and reader.bias is None and reader.name not in norms:
            reason = "no bias"
        if reason is not None:
            _note(lost, reason, reader, nonzero & constant)
        elif reader.bias is not None:
            moved[tensor_name(reader.name, "bias")] = _plus(reader.bias, change)
        else:
            norm: Any = model.get_submodule(norms[reader.name])
            moved[tensor_name(norms[reader.name], "running_mean")] = _plus(norm.running_mean, -change)
    return moved, lost


def _obstacle(reader: Reader, constants: Tensor, change: Tensor) -> str | None:
    """Return why the layer does not add `change` to every output, or why its bias cannot take it; else None."""
    module = reader.module
    if getattr(module, "padding_mode", None) == "zeros" and not isinstance(module, TRANSPOSED):
        reach = [step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True)]
        padding = {"same": reach, "valid": [0]}.get(module.padding, module.padding)
        if any(padding):
            return "zero padding"
    if not reader.adds(constants, change):
        return "spread unevenly"
    mask = module._buffers.get(PREFIX + "bias")
    if mask is not None and bool(change[mask.cpu() == 0].any()):
        return "masked bias"
    return None


def _plus(tensor: Tensor, change: Tensor) -> Tensor:
    return (tensor.detach().cpu().double() + change).to(tensor)


def _alike(expected: Any, found: Any) -> bool:
    """Whether the outputs are equal up to rounding; a constant with another reader changes them."""
    for out, other in zip(output_tensors(expected), output_tensors(found), strict=True):
        if out.is_floating_point():
            rounding = 0.03 if out.is_cuda else torch.finfo(out.dtype).eps ** 0.5
            difference = torch.linalg.vector_norm(out.double() - other.double())
            if difference > rounding * torch.linalg.vector_norm(out.double()):
                return False
    return True


def _note(lost: Lost, why: str, reader: Reader, which: Tensor) -> None:
    if which.any():
        lost.setdefault(why, {})[reader.name] = set(reader.channels[which].tolist())


def _warn(lost: Lost) -> None:
    """Warn, in one line, how many channels lose their constants, why, and which layers read them."""
    if not lost:
        return
    parts, every = [], set[int]()
    for why, layers in lost.items():
        channels = set[int]().union(*layers.values())
        every |= channels
        parts.append(f"{len(channels)} {why} ({shortened(list(layers))})" if layers else why)
    channels_lost = f"{len(every)} removed channels" if every else "removed channels"
    warnings.warn(
        f"cut: the constants of {channels_lost} could not all be folded: {'; '.join(parts)}", stacklevel=5
    )
