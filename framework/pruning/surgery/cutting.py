"""Cutting: remove channels from parameters, gradients, buffers, masks, optimizer state, attributes and companions.

Companions are further copies of the weights, as modules or mappings: rewind copies, EMA, initial weights. Map:

    keep {group: bool (channels,)} --_check--> removed = ~keep
                                                  |
         fold: moved_constants (new biases)       | kept_positions: all slices of the group
                      |                           v
                      |            kept {tensor: {dim: positions}},  positions (old -> new, -1 if removed)
                      v                           |
         values {id: tensor} <-- rescaling        | shrink = index_select along each dim, memory format kept
                      +------------+--------------+
                                   v
         all_or_nothing( mappings -> optimizer -> parameters, buffers and masks -> Lineage.record_cut
                         -> follow_shapes (adapters) )                                --error--> rollback
                                   v
         remap(groups, positions): the groups of the smaller network

- Parameters are replaced, not resized: graphs that hold the old ones stay valid. Hooks, attributes,
  `requires_grad` and the sliced gradient move to the new parameter; tied parameters are cut once.
- Optimizer: state tensors of the parameter's shape (momentum, exp_avg, ...) are sliced like it, one-entry tensors
  and Python values are kept, other shapes are refused; `param_groups` and `state` have the new parameters as
  keys.
- Companions: a module is cut like the model, an entry of a mapping is replaced; names that are absent from a
  mapping are skipped. Rows of attention queries are rescaled in them, too; `fold` does not change them.
- Rollback (`all_or_nothing`) restores attributes, classes, lineages, mappings and the optimizer, but not tensors
  that an adapter changed in place.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import check_network, named_tensors, tensor_name
from secateur.framework.network.lineage import Companion, KeptIndices, has_lineage, lineage_of, set_lineage
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.model_state import ModuleState
from secateur.framework.network.ordinary_tensors import ordinary_mode
from secateur.framework.network.preserve import replace_tensors
from secateur.framework.pruning.adapters.torch_layers import follow_shapes
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, example_of, like, remap
from secateur.framework.pruning.channels.slicing import Factor, kept_positions, rescaled, rescaling, shrink
from secateur.framework.pruning.channels.verification import not_removable
from secateur.framework.pruning.surgery.folding import moved_constants
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from secateur.utils.suggest import unknown


class _Replacement(NamedTuple):
    old: Tensor
    name: str
    dims: Mapping[int, Tensor]
    new: Tensor


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
    """Remove channels from a network, in place.

    Parameters are replaced by smaller ones, so that graphs that hold the old ones stay valid. A failure is rolled
    back: after an error the network, the optimizer and the companions are unchanged.

    Args:
        model: The network.
        keep: Group name -> bool `(channels,)`, False for a channel to remove. Groups without an entry do not
            change.
        groups: The groups of the network as it is, from `channel_groups` or an earlier `cut`.
        optimizer: A `torch.optim.Optimizer`, or a wrapper of one, whose parameters and states are replaced by the
            sliced ones. LBFGS is not supported. Default: None.
        companions: Mappings from tensor name to tensor, or modules like `model`, that are cut in the same way
            (EMA, rewind copies). Default: none.
        fold: Whether to move the constants of removed channels into the biases of the layers that read them, or
            into the running mean of the batch norm after them. In eval mode the cut network then computes what the
            present one computes with zeros as the weights (not biases and shifts) that produce the removed
            channels. Companions are not folded. Default: False.
        example_input: A batch on which the constants are observed, and the removal of a whole group is tried.
            Default: the sample with which the groups were traced.

    Returns:
        The groups of the smaller network, by the same names.

    Raises:
        UsageError: For a mask of an unknown or protected group, of another dtype or shape, or without a kept
            channel unless the group is `removable`; for groups, an optimizer state or a companion that do not
            match the network; for `fold` without an example.

    Warns:
        UserWarning: If `fold` cannot move some constants, such as those before zero padding.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import channel_groups, cut
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = channel_groups(model, torch.randn(1, 4))
        >>> smaller = cut(model, {"0": torch.arange(8) < 3}, groups)
        >>> model[0].weight.shape, model[2].weight.shape, smaller["0"].channels
        (torch.Size([3, 4]), torch.Size([2, 3]), 3)
    """
    check_network(model)
    _check(keep, groups)
    _check_current(model, {name: group for name, group in groups.items() if name in keep or not group.protected})
    _check_gone(model, keep, groups, example_input)
    removed = {name: ~mask.cpu() for name, mask in keep.items() if not bool(mask.all())}
    if not removed:
        return like(groups, groups)
    folded = moved_constants(model, removed, groups, example_input) if fold else {}
    kept_indices, positions = kept_positions(model, removed, groups)
    twins, mappings = _sorted_out(companions, model)
    for twin in twins:
        if not has_lineage(twin):  # it was copied before the model had one
            set_lineage(twin, copy.deepcopy(lineage_of(model)))
    modules = [model, *twins]
    lineages = [lineage_of(module) for module in modules]
    inner = None if optimizer is None else unwrapped(optimizer)
    shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    factors = rescaling(keep, groups)
    with all_or_nothing(modules, inner, mappings):
        for mapping in mappings:
            _cut_mapping(mapping, kept_indices, shapes, factors)
        smaller: dict[int, _Replacement] = {}
        for module in modules:
            _shrink_module(smaller, module, kept_indices, shapes, factors, folded if module is model else {})
        if inner is not None:
            _cut_optimizer(inner, smaller)
        new = {key: replacement.new for key, replacement in smaller.items()}
        for module, lineage in zip(modules, lineages, strict=True):
            replace_tensors(module, new)
            lineage.record_cut(kept_indices)
            follow_shapes(module)
        return remap(groups, positions, keep)


def _shrink_module(
    smaller: dict[int, _Replacement],
    module: nn.Module,
    kept_indices: KeptIndices,
    shapes: Mapping[str, torch.Size],
    factors: Mapping[str, Sequence[Factor]],
    folded: Mapping[str, Tensor],
) -> None:
    """Add the smaller parameters (with gradients), buffers and masks of one module, by the ids of the old ones.

    `shapes` are those of the model, `folded` new values of some tensors before slicing.
    """
    tensors = named_tensors(module)
    for name in kept_indices:
        old = tensors.get(name)
        if old is None or old.shape != shapes[name]:
            shape = "is missing" if old is None else f"has shape {tuple(old.shape)}, unlike the model's"
            raise UsageError(f"companion {type(module).__name__}: '{name}' {shape}")
    values = {id(tensors[name]): value for name, value in folded.items()}
    for name, parts in factors.items():
        values[id(tensors[name])] = rescaled(values.get(id(tensors[name]), tensors[name].detach()), parts)
    touched: KeptIndices = {name: {} for name, tensor in tensors.items() if id(tensor) in values} | kept_indices
    for name, dims in touched.items():
        old = tensors[name]
        if id(old) in smaller:  # tied tensors have several names
            continue
        value = shrink(values.get(id(old), old.detach()), dims)
        new = _replaced(old, value, dims) if isinstance(old, nn.Parameter) else value
        smaller[id(old)] = _Replacement(old, name, dims, new)
        owner, _, attribute = name.rpartition(".")
        mask = tensors.get(tensor_name(owner, PREFIX + attribute))
        if mask is not None:
            smaller[id(mask)] = _Replacement(mask, name, dims, shrink(mask, dims))


def _replaced(old: nn.Parameter, value: Tensor, dims: Mapping[int, Tensor]) -> nn.Parameter:
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    new.__class__ = type(old)
    new.__dict__.update(old.__dict__)  # the user's attributes of a parameter, such as a learning rate
    for hook in (old._backward_hooks or {}).values():
        new.register_hook(hook)
    for hook in (old._post_accumulate_grad_hooks or {}).values():  # type: ignore[attr-defined]
        new.register_post_accumulate_grad_hook(hook)
    if old.grad is not None:
        gradient = shrink(old.grad.detach(), dims)
        new.grad = gradient if dims else gradient.clone()  # a graph may still add to the old one
    return new


def _cut_optimizer(optimizer: torch.optim.Optimizer, smaller: Mapping[int, _Replacement]) -> None:
    """Slice state tensors of the parameter's shape, keep scalars, and refuse other shapes."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("LBFGS has a single flat state for all parameters, which cannot be cut")
    for old, name, dims, new in smaller.values():
        if old not in optimizer.state:
            continue
        state = optimizer.state[new] = dict(optimizer.state.pop(old))
        for key, value in state.items():
            if not isinstance(value, Tensor):
                continue
            if value.shape == old.shape:
                state[key] = shrink(value, dims)
            elif value.numel() != 1:
                raise UsageError(
                    f"{type(optimizer).__name__}'s state '{key}' of '{name}' has shape {tuple(value.shape)}, "
                    f"unlike its parameter {tuple(old.shape)}: it cannot be cut"
                )
    for group in optimizer.param_groups:
        group["params"] = [
            smaller[id(parameter)].new if id(parameter) in smaller else parameter for parameter in group["params"]
        ]


def _cut_mapping(
    companion: MutableMapping[str, Tensor],
    kept_indices: KeptIndices,
    shapes: Mapping[str, torch.Size],
    factors: Mapping[str, Sequence[Factor]],
) -> None:
    missed = next((name for name in kept_indices if name not in companion), None)
    wrapped = None if missed is None else next((key for key in companion if key.endswith(f".{missed}")), None)
    if wrapped is not None:
        raise UsageError(
            f"companion: '{wrapped}' is '{missed}' in the network: pass names without the prefix "
            f"'{wrapped.removesuffix(str(missed))}', or the module itself"
        )
    for name, dims in kept_indices.items():
        if name not in companion:
            continue
        value = companion[name]
        if not isinstance(value, Tensor):
            raise UsageError(f"companion: '{name}' is {type(value).__name__}, not a tensor")
        if value.shape != shapes[name]:
            raise UsageError(
                f"companion: '{name}' has shape {tuple(value.shape)}, the model's has {tuple(shapes[name])}"
            )
        companion[name] = shrink(rescaled(value.detach(), factors.get(name, ())), dims)


@contextmanager
def all_or_nothing(
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer | None,
    mappings: Iterable[MutableMapping[str, Tensor]],
) -> Iterator[None]:
    """Restore tensors, attributes, lineages, mappings and the optimizer if the body raises an error.

    Tensors changed in place, and mutable values of attributes such as lists, are not restored.
    """
    states = [ModuleState("", module) for network in modules for module in network.modules()]
    lineages = [copy.deepcopy(lineage_of(module)) for module in modules]
    entries = [(mapping, dict(mapping)) for mapping in mappings]
    parameters = [list(group["params"]) for group in optimizer.param_groups] if optimizer is not None else []
    of_optimizer = dict(optimizer.state) if optimizer is not None else {}
    try:
        yield
    except BaseException:
        for state in states:
            state.roll_back()
        for module, lineage in zip(modules, lineages, strict=True):
            set_lineage(module, lineage)
        for mapping, before in entries:
            for name, tensor in before.items():
                if mapping[name] is not tensor:
                    mapping[name] = tensor
        if optimizer is not None:
            for group, params in zip(optimizer.param_groups, parameters, strict=True):
                group["params"] = params
            optimizer.state.clear()
            optimizer.state.update(of_optimizer)
        raise


def _sorted_out(
    companions: Sequence[Companion], model: nn.Module
) -> tuple[list[nn.Module], list[MutableMapping[str, Tensor]]]:
    """Return the distinct twin modules and mappings, without the model itself."""
    if isinstance(companions, (nn.Module, Mapping)) or not isinstance(companions, Iterable):
        raise UsageError(f"companions must be a list of mappings and modules, got {type(companions).__name__}")
    distinct: dict[int, Companion] = {}
    for companion in companions:
        if isinstance(companion, torch.optim.swa_utils.AveragedModel):
            companion = companion.module
        if not isinstance(companion, (nn.Module, MutableMapping)):
            raise UsageError(f"a companion must be a module or a mutable mapping, got {type(companion).__name__}")
        distinct[id(companion)] = companion
    others = [companion for companion in distinct.values() if companion is not model]
    twins = [companion for companion in others if isinstance(companion, nn.Module)]
    return twins, [companion for companion in others if not isinstance(companion, nn.Module)]


def _check_current(model: nn.Module, groups: Groups) -> None:
    """Raise UsageError for groups that were traced before an earlier cut: indices exceed the tensors' sizes."""
    sizes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    for name, group in groups.items():
        for tensor, dim, index in group.slices:
            if tensor not in sizes or index.numel() and index.numpy().max() >= sizes[tensor][dim]:
                raise UsageError(
                    f"group '{name}' does not match the network: it was traced on another one, or before a cut "
                    "(use the groups that cut returned)"
                )


def _check(keep: Mapping[str, Tensor], groups: Groups) -> None:
    for what, given in (("keep", keep), ("groups", groups)):
        if not isinstance(given, Mapping):
            raise UsageError(f"{what} must be a mapping from group names, got {type(given).__name__}")
    for name, mask in keep.items():
        if name not in groups:
            raise UsageError(unknown("channel group", name, list(groups)))
        group = groups[name]
        if not isinstance(group, ChannelGroup):
            raise UsageError(f"groups must be those of channel_groups, got {type(group).__name__} for '{name}'")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (group.channels,):
            found = (
                f"{mask.dtype} {tuple(mask.shape)}"
                if isinstance(mask, Tensor)
                else f"{type(mask).__name__}, no tensor"
            )
            raise UsageError(f"the keep mask of '{name}' is {found}, expected bool ({group.channels},)")
        if group.protected is not None and not bool(mask.all()):
            raise UsageError(f"group '{name}' is protected ({group.protected}) and cannot be cut")
        if not bool(mask.any()) and group.channels and not group.removable:
            raise UsageError(f"the keep mask of '{name}' leaves no channel")


def _check_gone(
    model: nn.Module, keep: Mapping[str, Tensor], groups: Groups, example_input: Tensor | None
) -> None:
    """Try the removal of whole groups on a copy; raise UsageError if it fails."""
    removed = {name: groups[name] for name, mask in keep.items() if len(mask) and not bool(mask.any())}
    if not removed:
        return
    example = example_of(groups) if example_input is None else example_input[:1]
    if example is None:
        raise UsageError(f"group '{next(iter(removed))}' cannot be removed entirely without an example_input")
    for name, reason in not_removable(model, example, removed).items():
        raise UsageError(f"group '{name}' cannot be removed entirely: {reason}")
