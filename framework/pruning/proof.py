"""Does a cut compute what a mask computes? Tried out, since a traced graph cannot know what an operation means.

An operation that mixes channels (softmax, matmul, a reshape, an added constant) looks like any other in the
graph. So before a group is called free, some of its channels are cut from one copy of the network and masked in
another, both with the same made-up weights, and the outputs are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from framework.lineage import lineage_of
from framework.prunable import PRUNABLE, tensor_name
from framework.pruning.attributes import follow_shapes
from framework.pruning.channels import MODEL_OUTPUT, ChannelGroup, Groups
from framework.pruning.cutting import shrink, what_stays
from framework.pruning.masks import PREFIX

CHANGED = "a cut does not compute what a mask computes"
SEED = 20_240_229
#: made-up values begin anew after so many, which saves time: a prime number, so that no two rows are alike
PERIOD = 65_537
MADE_UP = (*PRUNABLE, nn.modules.batchnorm._NormBase, nn.PReLU, nn.LayerNorm)
Keep = dict[str, Tensor]


def refuted(model: nn.Module, example: Tensor, groups: Groups) -> dict[str, str]:
    """The free groups whose cut is wrong, with the reason; call it in eval mode.

    The model is not changed: its copies share its tensors until they get their own. A group marked inexact is
    only asked to keep the network running and the shapes of its outputs.
    """
    free = {name: group for name, group in groups.items() if group.protected is None and group.channels > 1}
    keeps, alike = _keeps(free)
    reasons: dict[str, str] = {}
    exact = [name for name in free if free[name].exact]
    # what passes only when cut alike lies side by side: the parts of one layer's outputs
    pending = [exact[::2], exact[1::2]] if alike else [exact]
    pending.append([name for name in free if not free[name].exact])
    while pending:
        names = pending.pop()
        wrong = _wrong(model, example, {name: free[name] for name in names}, keeps) if names else None
        if wrong is None:
            continue
        halves = [names[: len(names) // 2], names[len(names) // 2 :]] if len(names) > 1 else []
        if any(_wrong(model, example, {name: free[name] for name in half}, keeps) for half in halves):
            pending += halves
        else:  # alone, or wrong only together
            reasons |= dict.fromkeys(names, wrong)
    return reasons


def _keeps(groups: Groups) -> tuple[Keep, bool]:
    """For each group a mask without a third to two thirds of the channels, and whether two groups of one size
    lose equally many: the halves of a chunk may be cut, but only alike. The first loses the most, since a chunk
    of an odd number has its larger half first."""
    generator = torch.Generator().manual_seed(SEED)
    counts: dict[int, int] = {}
    keeps, alike = {}, False
    for name, group in groups.items():
        earlier = counts.get(group.channels, 0)
        counts[group.channels] = earlier + 1
        spread = max(1, group.channels // 3)
        alike = alike or earlier >= spread
        keep = torch.ones(group.channels, dtype=torch.bool)
        order = torch.randperm(group.channels, generator=generator)
        keep[order[: max(1, 2 * group.channels // 3) - earlier % spread]] = False
        keeps[name] = keep
    return keeps, alike


def _wrong(model: nn.Module, example: Tensor, groups: Groups, keeps: Keep) -> str | None:
    """Why cutting channels of these groups differs from masking them, or None.

    One set of made-up tensors serves both, since a cut takes out what the mask has set to zero: memory holds it
    once.
    """
    values = _made_up_values(model, {part.tensor for group in groups.values() for part in group.slices})
    keep = {name: keeps[name] for name in groups}
    twin = _copy(model, values)
    values.clear()
    _mask_in_place(twin, groups, keep)
    exact = all(group.exact for group in groups.values())
    with torch.no_grad():
        expected = tree_leaves(twin(example))
        try:
            _cut_in_place(twin, keep, groups)
            found = tree_leaves(twin(example))
        except Exception as error:  # whatever a stranger's forward raises on sizes it does not expect
            return f"{CHANGED}: {type(error).__name__}"
    if [getattr(one, "shape", None) for one in expected] != [getattr(one, "shape", None) for one in found]:
        return MODEL_OUTPUT
    return CHANGED if exact and not all(map(_equal, expected, found)) else None


def _cut_in_place(twin: nn.Module, keep: Keep, groups: Groups) -> None:
    """Cut tensor by tensor: nothing needs to be kept in case of an error."""
    removed = {name: ~mask for name, mask in keep.items()}
    lineage = lineage_of(twin)
    for tensor, dims in what_stays(twin, removed, groups)[0].items():
        owner, _, attribute = tensor.rpartition(".")
        module = twin.get_submodule(owner)
        holder: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
        old = holder[attribute]
        for dim, index in dims.items():
            lineage.record_cut(tensor, dim, index)
        if all(old.shape[dim] == len(index) for dim, index in dims.items()):
            continue  # tied to one that was cut before
        new = shrink(old, dims)
        replacement = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
        for other in twin.modules():  # tied tensors have several places
            places: tuple[Any, Any] = (other._parameters, other._buffers)
            for tensors in places:
                tensors.update(dict.fromkeys([name for name in tensors if tensors[name] is old], replacement))
    follow_shapes(twin)


@torch.no_grad()
def _mask_in_place(twin: nn.Module, groups: Mapping[str, ChannelGroup], keep: Keep) -> None:
    """Zero the channels' slices of the parameters, which are all made up: the twin's own."""
    parameters = dict(twin.named_parameters())
    for name, mask in keep.items():
        for tensor, dim, index in groups[name].slices:
            if tensor in parameters:
                values = parameters[tensor]
                values.index_fill_(dim, index[~mask].flatten().to(values.device), 0)


def _equal(expected: Any, found: Any) -> bool:
    """Equal up to rounding; a wrong meaning is off by far more than the coarsest of it."""
    if not isinstance(expected, Tensor) or not expected.is_floating_point():
        return True
    if not expected.isfinite().all():
        return bool((expected.isfinite() == found.isfinite()).all())
    coarse = expected.is_cuda or torch.finfo(expected.dtype).eps > 1e-6  # TF32, half precision
    expected, found = expected.double(), found.double()
    allowed = (0.03 if coarse else 1e-3) * torch.linalg.vector_norm(expected)
    return bool(torch.linalg.vector_norm(expected - found) <= allowed)


def _copy(model: nn.Module, values: Mapping[int, Tensor]) -> nn.Module:
    """The modules copied, the tensors shared, except for parameters and statistics with made-up values."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in _all_tensors(model)}
    twin = copy.deepcopy(model, shared)
    made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for module in twin.modules():
        for name in [name for name in module._buffers if name.startswith(PREFIX)]:
            del module._buffers[name]  # masks play no part, and cutting them costs time
        for name, old in module._parameters.items():
            if old is not None and id(old) in values:
                made.setdefault(id(old), nn.Parameter(values[id(old)], requires_grad=False))
                module._parameters[name] = made[id(old)]
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) in values:
                module._buffers[name] = values[id(buffer)]
    return twin


def _all_tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for holder in (vars(module), module._parameters, module._buffers):
            yield from (value for value in holder.values() if isinstance(value, Tensor))


@torch.no_grad()
def _made_up_values(model: nn.Module, masked: set[str]) -> dict[int, Tensor]:
    """Values for the layers we know and for all that is masked, by the id of the tensor they stand for.

    A fresh network has zero shifts and unit scales, a pruned one dead channels; there a wrong cut could pass.
    """
    generator = torch.Generator().manual_seed(SEED)
    found: dict[int, Tensor] = {}
    for module_name, module in model.named_modules():
        known = isinstance(module, MADE_UP)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not tensor.is_floating_point() or name.startswith(PREFIX):
                continue
            if id(tensor) not in found and (known or tensor_name(module_name, name) in masked):
                found[id(tensor)] = _made_up(tensor, name, known, generator)
    return found


def _made_up(tensor: Tensor, name: str, known: bool, generator: torch.Generator) -> Tensor:
    values = torch.randn(min(tensor.numel(), PERIOD), generator=generator)
    if tensor.dim() > 1 and name.endswith("weight"):
        values.mul_((2 / max(1, tensor[0].numel())) ** 0.5)
    elif known and name in ("weight", "running_var"):
        values.tanh_().mul_(0.5).add_(1)
    else:
        values.mul_(0.3)
    times = -(-tensor.numel() // PERIOD)
    values = values.repeat(times)[: tensor.numel()].view(tensor.shape).to(tensor)
    # a stranger's parameter (a scale, a table, a token) may mean anything: near what it is
    return values if known or name.endswith("weight") else values.add_(tensor)
