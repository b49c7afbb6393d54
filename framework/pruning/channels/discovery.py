"""Find the channel groups of a network: trace a forward pass, then verify every group that can be cut."""

import contextlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.framework.network.copies import twin_of
from secateur.framework.network.layers import check_network, prunable_layers
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.ordinary_tensors import ordinary, ordinary_mode
from secateur.framework.network.preserve import preserved_state, random_numbers_as_before
from secateur.framework.network.size import layer_sizes
from secateur.framework.pruning.channels.groups import MODEL_OUTPUT, ChannelGroup, TracedGroups, check_example
from secateur.framework.pruning.channels.tracing.attention_scale import with_queries
from secateur.framework.pruning.channels.tracing.context import Context
from secateur.framework.pruning.channels.tracing.grouping import Grouping, doubtful_groups, mark_removable
from secateur.framework.pruning.channels.tracing.tracer import _follow, meta_copy
from secateur.framework.pruning.channels.verification import distance, mismatches
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

#: of two ways to cut, the right one differs by rounding only: its distance is below this share of the other one
FAR_BELOW = 0.1


@ordinary_mode()
def channel_groups(
    model: nn.Module,
    example_input: Tensor,
    protect: Sequence[str] = (),
    inexact: bool = False,
    attention: str = "dims",
) -> TracedGroups:
    """Return all channel groups of a network in forward order, named by their first producing module.

    A group is protected if it reaches the model's output, if its producer is named in `protect`, if tracing meets
    an operation without a rule, or if a trial cut on a copy does not compute what masking the same channels
    computes. The model is not changed.

    Args:
        model: The network. Its parameters must be initialised, dense and not on the meta device.
        example_input: A batch that the model accepts, `(samples, ...)`; only the first sample is used.
        protect: Names of modules; a name includes its submodules. Groups whose channels are outputs of these
            modules are never cut. Default: no module.
        inexact: Whether to leave a group free if a statistic over the channels (LayerNorm, softmax, ...) makes a
            cut differ numerically from a mask, as long as the cut network runs. Default: False.
        attention: The unit that is removed inside attention: "dims", one entry of every head (the default), or
            "heads", whole heads of the modules whose `adapter` defines `heads`.

    Returns:
        A dict from group name to `ChannelGroup`. It also remembers the sample, which `cut` uses by default.

    Raises:
        UsageError: If `model` is not an `nn.Module` or has no prunable layer, if it rejects the input, if
            `example_input` is not a dense batch, or if `protect` or `attention` have unknown values.

    Warns:
        UserWarning: If `attention` is "heads" and no module has an adapter that defines its heads.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import channel_groups
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = channel_groups(model, torch.randn(1, 4))
        >>> {name: (group.channels, group.protected) for name, group in groups.items()}
        {'0': (8, None), '2': (2, 'model output')}
    """
    check_network(model)
    if not prunable_layers(model):
        raise UsageError(f"{type(model).__name__} has no prunable layer (convolution or linear)")
    check_example(example_input)
    example_input = ordinary(example_input)
    if attention not in ("dims", "heads"):
        raise UsageError(unknown("way to cut attention", attention, ("dims", "heads")))
    protect = _prefixes(model, protect)

    groups = TracedGroups(trace(model, example_input[:1], inexact, attention), example_input[:1])
    for name, group in groups.items():
        for prefix in protect:
            if group.protected is None and any(f"{layer}.".startswith(f"{prefix}.") for layer in group.layers):
                groups[name] = replace(group, protected=f"protected by name: {prefix}")
    outputs = [group.layers for group in groups.values() if group.protected == MODEL_OUTPUT]
    lineage_of(model).output_layers = tuple(dict.fromkeys(sum(outputs, ())))
    return groups


def node_sparsity(model: nn.Module, example_input: Tensor) -> float:
    """Return 1 - (output units of prunable layers now / in the dense network), without the output layers.

    A unit whose weights are all zero counts as pruned. Returns 0 for a network without hidden units.
    """
    lineage = lineage_of(model)
    if lineage.output_layers is None:
        channel_groups(model, example_input)
    hidden = [size for name, size in layer_sizes(model).items() if name not in (lineage.output_layers or ())]
    total = sum(size.dense_channels for size in hidden)
    return 1 - sum(size.channels for size in hidden) / total if total else 0.0


def _prefixes(model: nn.Module, protect: Sequence[str]) -> Sequence[str]:
    """Return the prefixes as a tuple; raise UsageError for one that matches no module."""
    protect = (protect,) if isinstance(protect, str) else protect
    if not isinstance(protect, Collection) or not all(isinstance(prefix, str) for prefix in protect):
        raise UsageError(f"protect must be names of modules, got {protect!r}")
    names = [name for name, _ in model.named_modules()]
    for prefix in protect:
        if not any(f"{name}.".startswith(f"{prefix}.") for name in names):
            raise UsageError(unknown("module to protect", prefix, list(prunable_layers(model))))
    return tuple(protect)


def trace(model: nn.Module, example: Tensor, inexact: bool, attention: str = "dims") -> dict[str, ChannelGroup]:
    """Return the groups by name in forward order; see `channel_groups`. The model is not changed."""
    with preserved_state(model), random_numbers_as_before():
        traced, shadow = None, meta_copy(model)
        if shadow is not None:
            with contextlib.suppress(UsageError):  # the forward pass needs values, or does not run at all
                traced = _follow(shadow, torch.empty_like(example, device="meta"), attention)
        if traced is not None and not traced.misled:
            path = traced.path if traced.numberless else ()
            groups, refused = _proven(model, example, inexact, traced, path)
            if not refused:
                return groups
        # on the meta device the code may take another branch: after a refused trial, trace with values
        traced = _follow(twin_of(model), example, attention)
        if traced.misled:
            traced = _follow(twin_of(model), example, attention, traced.misled)
        return _proven(model, example, inexact, traced)[0]


def _proven(
    model: nn.Module, example: Tensor, inexact: bool, context: Context, path: Sequence[str] = ()
) -> tuple[dict[str, ChannelGroup], bool]:
    """Return the verified groups of a trace, and whether a trial refused any; for `path` see `mismatches`."""
    groups = Grouping(model, context).collect(inexact)
    context.forget_labels()
    queries = context.queries
    groups |= _runs(model, example, with_queries(groups, context.labels, queries.sure))
    mark_removable(groups, context)
    free = {name: group for name, group in groups.items() if group.protected is None and not group.queries}
    groups |= _scaled_by_hand(model, example, free, with_queries(free, context.labels, queries.maybe))
    refused = mismatches(model, example, groups, doubtful_groups(groups, context), path)
    for name, reason in refused.items():
        groups[name] = replace(groups[name], protected=reason)
    return groups, bool(refused)


def _runs(model: nn.Module, example: Tensor, marked: dict[str, ChannelGroup]) -> dict[str, ChannelGroup]:
    """Return the `marked` groups, protected where the code hard-codes the size of a head.

    One trial per module class, with the first group inside it, decides for all groups inside that class.
    """
    kinds: dict[type[nn.Module], list[str]] = {}
    for name, group in marked.items():
        if group.protected is None:
            owner = model.get_submodule(group.producers[0].rpartition(".")[0])
            kinds.setdefault(type(owner), []).append(name)
    for names in kinds.values():
        reason = mismatches(model, example, {names[0]: marked[names[0]]}).get(names[0]) if len(names) > 1 else None
        for name in names if reason is not None else ():
            marked[name] = replace(marked[name], protected=reason)
    return marked


def _scaled_by_hand(
    model: nn.Module, example: Tensor, free: dict[str, ChannelGroup], marked: dict[str, ChannelGroup]
) -> dict[str, ChannelGroup]:
    """Return the `marked` groups whose queries must be rescaled, since the code computes 1/sqrt(head size) itself.

    Verification alone cannot decide this: where attention hardly affects the output, the cuts with and without
    rescaling both pass. The ratio of the two distances decides.
    """
    marked = {
        name: group for name, group in marked.items() if group.queries and group.exact and group.channels > 1
    }
    pending = [list(marked)] if marked else []
    rescaled: dict[str, ChannelGroup] = {}
    while pending:
        names = pending.pop()
        plain, scaled = (
            distance(model, example, {name: groups[name] for name in names}) for groups in (free, marked)
        )
        if scaled < FAR_BELOW * plain:
            rescaled.update((name, marked[name]) for name in names)
        elif FAR_BELOW * scaled <= plain < math.inf and len(names) > 1 and scaled > 0:  # a mixture: split
            pending += [names[: len(names) // 2], names[len(names) // 2 :]]
    return rescaled
