"""Removing channels from everything that has them: parameters, gradients, buffers, masks, optimizer state,
attributes, and the companions (rewind copies, EMA, initial weights)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import check_network, named_tensors
from secateur.framework.network.lineage import Companion, Lineage, Staying, has_lineage, lineage_of, set_lineage
from secateur.framework.network.masks import PREFIX, Masks
from secateur.framework.network.ordinary_tensors import ordinary_mode
from secateur.framework.pruning.adapters.torch_layers import follow_shapes
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, TracedGroups, example_of, remap
from secateur.framework.pruning.channels.slicing import Factor, rescaled, rescaling, shrink, what_stays
from secateur.framework.pruning.surgery.folding import moved_constants
from secateur.framework.pruning.surgery.rollback import all_or_nothing
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from secateur.utils.suggest import unknown


@dataclass
class _Plan:
    """Everything that will replace something, made before anything is replaced."""

    parameters: list[tuple[nn.Parameter, nn.Parameter]] = field(default_factory=list)
    #: (module, attribute, new tensor)
    buffers: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)
    entries: list[tuple[MutableMapping[str, Tensor], str, Tensor]] = field(default_factory=list)
    states: list[tuple[nn.Parameter, dict[str, Any]]] = field(default_factory=list)


@ordinary_mode()
def cut(
    model: nn.Module,
    keep: Mapping[str, Tensor],
    groups: Groups,
    optimizer: Any = None,
    companions: Sequence[Companion] = (),
    fold: bool = False,
    example_input: Tensor | None = None,
) -> dict[str, ChannelGroup]:
    """Take the channels that are off in `keep` (group name -> bool `(channels,)`) out of the network.

    Parameters are replaced by smaller ones, so a graph that still holds the old ones stays valid; the
    optimizer's groups and states are re-keyed to the new ones and sliced alike. `companions` are mappings
    from tensor name to tensor, or twin modules, that are cut in the same way. Everything is planned before
    anything changes, and what fails then (an adapter, a mapping) is undone: an error leaves all as it was.
    Returns the groups of the smaller network.

    With `fold` the cut network computes in eval mode what the present one computes once the weights (not biases
    and shifts) that produce the removed channels are zero: the constant that such a channel still carries moves
    into the biases of the layers that read it, or into the running mean of the batch norm behind. A warning tells
    what cannot move, such as constants in front of zero padding. To see the constants the network runs on
    `example_input`, or on the sample the groups were traced with. Companions are not folded.

    Raises UsageError for a mask of an unknown or protected group, of the wrong length, or without a channel
    left, for an optimizer state or companion that does not fit, and for `fold` without an example.
    """
    check_network(model)
    _check(keep, groups)
    _check_current(model, {name: group for name, group in groups.items() if name in keep or not group.protected})
    _check_gone(model, keep, groups, example_input)
    removed = {name: ~mask.cpu() for name, mask in keep.items() if not bool(mask.all())}
    if not removed:
        return TracedGroups(groups, groups.example) if isinstance(groups, TracedGroups) else dict(groups)
    folded = moved_constants(model, removed, groups, example_input) if fold else {}
    staying, positions = what_stays(model, removed, groups)
    twins, mappings = _sorted_out(companions, model)
    plan = _Plan()
    named = named_tensors(model)
    factors = rescaling(keep, groups)
    values = {id(named[name]): value for name, value in folded.items()}
    for name, parts in factors.items():
        values[id(named[name])] = rescaled(values.get(id(named[name]), named[name].detach()), parts)
    touched: Staying = {name: {} for name, tensor in named.items() if id(tensor) in values} | staying
    _plan_module(plan, model, touched, values=values)
    for twin in twins:
        own = named_tensors(twin)
        scaled = {
            id(own[name]): rescaled(own[name].detach(), parts)
            for name, parts in factors.items()
            if name in own and own[name].shape == named[name].shape
        }
        _plan_module(plan, twin, staying, like=model, values=scaled)
    _plan_optimizer(plan, optimizer, touched, [model, *twins])
    for mapping in mappings:
        _plan_mapping(plan, mapping, staying, model, factors)
    modules = [model, *twins]
    lineages = [lineage_of(model), *(_twin_lineage(twin, model) for twin in twins)]
    with all_or_nothing(modules, None if optimizer is None else unwrapped(optimizer), mappings):
        _apply(plan, modules, optimizer)
        for module, lineage in zip(modules, lineages, strict=True):
            for tensor, dims in staying.items():
                for dim, index in dims.items():
                    lineage.record_cut(tensor, dim, index)
            follow_shapes(module)
        return remap(groups, positions, keep)


def _plan_module(
    plan: _Plan,
    module: nn.Module,
    staying: Staying,
    like: nn.Module | None = None,
    values: Mapping[int, Tensor] | None = None,
) -> None:
    """New parameters (gradients along), buffers and masks of one module; `values` has new ones by tensor id."""
    reference = named_tensors(like) if like is not None else {}
    own = named_tensors(module)
    seen: set[int] = set()
    for name, dims in staying.items():
        old = own.get(name)
        if old is None or reference and old.shape != reference[name].shape:
            shape = "is missing" if old is None else f"has shape {tuple(old.shape)}, unlike the model's"
            raise UsageError(f"companion {type(module).__name__}: '{name}' {shape}")
        owner_name, _, attribute = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        value = (values or {}).get(id(old), old.detach())
        if isinstance(old, nn.Parameter):
            if id(old) not in seen:  # tied ones have several names
                plan.parameters.append((old, _smaller(old, dims, value)))
            seen.add(id(old))
        else:
            plan.buffers.append((owner, attribute, shrink(value, dims)))
        mask = owner._buffers.get(PREFIX + attribute)
        if mask is not None:
            plan.buffers.append((owner, PREFIX + attribute, shrink(mask, dims)))


def _smaller(old: nn.Parameter, dims: Mapping[int, Tensor], value: Tensor) -> nn.Parameter:
    new = nn.Parameter(shrink(value, dims), requires_grad=old.requires_grad)
    new.__class__ = type(old)
    new.__dict__.update(old.__dict__)  # marks that users put on parameters, such as a learning rate of their own
    for hook in (old._backward_hooks or {}).values():
        new.register_hook(hook)
    for hook in (old._post_accumulate_grad_hooks or {}).values():  # type: ignore[attr-defined]
        new.register_post_accumulate_grad_hook(hook)
    if old.grad is not None:
        gradient = shrink(old.grad.detach(), dims)
        new.grad = gradient if dims else gradient.clone()  # a graph may still add to the old one
    return new


def _plan_optimizer(plan: _Plan, optimizer: Any, staying: Staying, modules: Sequence[nn.Module]) -> None:
    if optimizer is None:
        return
    inner = unwrapped(optimizer)
    if isinstance(inner, torch.optim.LBFGS):
        raise UsageError("LBFGS keeps one flat state for all parameters together: it cannot be cut")
    names = {id(tensor): name for module in modules for name, tensor in named_tensors(module).items()}
    for old, _ in plan.parameters:
        if old in inner.state:
            name = names[id(old)]
            state = {
                key: _smaller_state(value, key, old, name, staying[name], type(inner).__name__)
                for key, value in inner.state[old].items()
            }
            plan.states.append((old, state))


def _smaller_state(
    value: Any, key: str, parameter: Tensor, name: str, dims: Mapping[int, Tensor], optimizer: str
) -> Any:
    """Tensors of the parameter's shape are sliced like it, scalars stay, other shapes are refused."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape:
        return shrink(value, dims)
    if value.numel() == 1:
        return value
    raise UsageError(
        f"{optimizer}'s state '{key}' of '{name}' has shape {tuple(value.shape)}, unlike its parameter "
        f"{tuple(parameter.shape)}: it cannot be cut"
    )


def _plan_mapping(
    plan: _Plan,
    companion: MutableMapping[str, Tensor],
    staying: Staying,
    model: nn.Module,
    factors: Mapping[str, Sequence[Factor]],
) -> None:
    reference = named_tensors(model)
    missed = next((name for name in staying if name not in companion), None)
    wrapped = None if missed is None else next((key for key in companion if key.endswith(f".{missed}")), None)
    if wrapped is not None:
        raise UsageError(
            f"companion: it has '{wrapped}', and the network's name is '{missed}': give names without the prefix "
            f"'{wrapped.removesuffix(str(missed))}', or the module itself"
        )
    for name, dims in staying.items():
        if name not in companion:
            continue
        if not isinstance(companion[name], Tensor):
            raise UsageError(f"companion: '{name}' is {type(companion[name]).__name__}, not a tensor")
        if companion[name].shape != reference[name].shape:
            raise UsageError(
                f"companion: '{name}' has shape {tuple(companion[name].shape)}, the model's has "
                f"{tuple(reference[name].shape)}"
            )
        values = rescaled(companion[name].detach(), factors[name]) if name in factors else companion[name].detach()
        plan.entries.append((companion, name, shrink(values, dims)))


def _apply(plan: _Plan, modules: Sequence[nn.Module], optimizer: Any) -> None:
    new = {id(old): parameter for old, parameter in plan.parameters}
    for module in modules:
        for owner in module.modules():
            for attribute, old in owner._parameters.items():
                if old is not None and id(old) in new:
                    owner._parameters[attribute] = new[id(old)]
    for owner, attribute, buffer in plan.buffers:
        owner._buffers[attribute] = buffer
    for mapping, name, tensor in plan.entries:
        mapping[name] = tensor
    if optimizer is None:
        return
    inner = unwrapped(optimizer)
    for group in inner.param_groups:
        group["params"] = [new.get(id(parameter), parameter) for parameter in group["params"]]
    for old, state in plan.states:
        del inner.state[old]
        inner.state[new[id(old)]] = state


def _sorted_out(
    companions: Sequence[Companion], model: nn.Module
) -> tuple[list[nn.Module], list[MutableMapping[str, Tensor]]]:
    """Twin modules and mappings, each once, without the model itself."""
    if isinstance(companions, (nn.Module, Mapping)) or not isinstance(companions, Iterable):
        raise UsageError(f"companions are a list of mappings and modules, got {type(companions).__name__}")
    twins: dict[int, nn.Module] = {}
    mappings: dict[int, MutableMapping[str, Tensor]] = {}
    for companion in companions:
        if isinstance(companion, nn.Module):
            if _inner(companion) is not model:
                twins[id(_inner(companion))] = _inner(companion)
        elif isinstance(companion, MutableMapping):
            mappings[id(companion)] = companion
        else:
            kind = type(companion).__name__
            raise UsageError(f"a companion is a module, or a mapping that can be changed; got {kind}")
    return list(twins.values()), list(mappings.values())


def _inner(module: nn.Module) -> nn.Module:
    """The network inside an `AveragedModel`, which keeps its copy as `.module`."""
    return module.module if isinstance(module, torch.optim.swa_utils.AveragedModel) else module


def _twin_lineage(twin: nn.Module, model: nn.Module) -> Lineage:
    """The twin's record; one that was copied before the model had a record gets the model's."""
    if not has_lineage(twin):
        set_lineage(twin, copy.deepcopy(lineage_of(model)))
    return lineage_of(twin)


def _check_current(model: nn.Module, groups: Groups) -> None:
    """Groups traced before an earlier cut point past the ends of the tensors."""
    sizes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    for name, group in groups.items():
        for tensor, dim, index in group.slices:
            if tensor not in sizes or index.numel() and index.numpy().max() >= sizes[tensor][dim]:
                raise UsageError(
                    f"group '{name}' does not fit the network: it was traced on another one, or before a cut "
                    "(take the groups that cut returned)"
                )


def _check(keep: Mapping[str, Tensor], groups: Groups) -> None:
    for what, given in (("keep", keep), ("groups", groups)):
        if not isinstance(given, Mapping):
            raise UsageError(f"{what} is a mapping from group names, got {type(given).__name__}")
    for name, mask in keep.items():
        if name not in groups:
            raise UsageError(unknown("channel group", name, list(groups)))
        group = groups[name]
        if not isinstance(group, ChannelGroup):
            raise UsageError(f"groups are those of channel_groups, got {type(group).__name__} for '{name}'")
        if not isinstance(mask, Tensor):
            kind = type(mask).__name__
            raise UsageError(f"the keep mask of '{name}' is {kind}, expected a tensor, bool ({group.channels},)")
        if mask.dtype != torch.bool or tuple(mask.shape) != (group.channels,):
            raise UsageError(
                f"the keep mask of '{name}' is {mask.dtype} {tuple(mask.shape)}, expected bool ({group.channels},)"
            )
        if group.protected is not None and not bool(mask.all()):
            raise UsageError(f"group '{name}' is protected ({group.protected}) and cannot be cut")
        if not bool(mask.any()) and group.channels and not group.removable:
            raise UsageError(f"the keep mask of '{name}' leaves no channel")


def _check_gone(
    model: nn.Module, keep: Mapping[str, Tensor], groups: Groups, example_input: Tensor | None
) -> None:
    """A block that goes entirely is tried on a copy first."""
    gone = {name: groups[name] for name, mask in keep.items() if len(mask) and not bool(mask.any())}
    if not gone:
        return
    from secateur.framework.pruning.channels.verification import not_removable  # it cuts as well

    example = example_of(groups) if example_input is None else example_input[:1]
    if example is None:
        raise UsageError(f"group '{next(iter(gone))}' can only go entirely with an example_input to try it on")
    for name, reason in not_removable(model, example, gone).items():
        raise UsageError(f"group '{name}' cannot go entirely: {reason}")


def mask_channels(model: nn.Module, keep: Mapping[str, Tensor], groups: Groups) -> None:
    """Mask instead of cut: every parameter entry of a removed channel's slices is zero and held there."""
    _check(keep, groups)
    Masks(model).hold(channel_masks(model, keep, groups))


def channel_masks(model: nn.Module, keep: Mapping[str, Tensor], groups: Groups) -> dict[str, Tensor]:
    """Parameter name -> bool mask that is off where a removed channel owns an entry."""
    parameters = dict(model.named_parameters())
    masks: dict[str, Tensor] = {}
    for name, mask in keep.items():
        off = ~mask.cpu()
        for tensor, dim, index in groups[name].slices:
            if tensor in parameters:
                held = masks.setdefault(tensor, torch.ones_like(parameters[tensor], dtype=torch.bool))
                held.index_fill_(dim, index[off].flatten().to(held.device), False)
    return masks
