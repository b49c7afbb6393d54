"""Find the groups of channels of a network: trace it, and verify every group that can be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.framework.network.copies import twin_of
from secateur.framework.network.layers import check_network, prunable_layers
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.ordinary_tensors import ordinary, ordinary_mode
from secateur.framework.network.preserve import preserved_state, random_numbers_as_before
from secateur.framework.pruning.channels.groups import (
    ATTENTION,
    MODEL_OUTPUT,
    ChannelGroup,
    TracedGroups,
    _prefixes,
    check_example,
)
from secateur.framework.pruning.channels.tracing.attention_scale import with_queries
from secateur.framework.pruning.channels.tracing.grouping import (
    collect,
    doubtful_groups,
    mark_removable,
    named_groups,
)
from secateur.framework.pruning.channels.tracing.meta_network import meta_copy
from secateur.framework.pruning.channels.tracing.tracer import FAR_BELOW, Followed, _follow
from secateur.framework.pruning.channels.verification import distance, mismatches
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown


@ordinary_mode()
def channel_groups(
    model: nn.Module,
    example_input: Tensor,
    protect: Sequence[str] = (),
    inexact: bool = False,
    attention: str = "dims",
) -> TracedGroups:
    """All channel groups of a network in forward order, named by their (first) producing module.

    `example_input` is a batch the model accepts; one sample is used. `protect` takes module-name prefixes:
    groups whose channels they have as outputs are never cut. Protected are also groups that reach the model's
    output and those whose cut, tried on a copy, does not compute what a mask computes; `inexact` frees those
    where only the numbers differ, such as behind a LayerNorm, as long as the network runs. With `attention`
    "dims" a channel inside attention is one entry of every head, with "heads" it is a whole head (where an
    adapter tells what a head is; a warning says so where none does). The model is not changed. Raises UsageError
    if the model rejects the input or has no prunable layer.
    """
    check_network(model)
    if not prunable_layers(model):
        raise UsageError(f"{type(model).__name__} has no prunable layer (convolution or linear)")
    check_example(example_input)
    example_input = ordinary(example_input)
    if len(example_input) == 0:
        raise UsageError(
            f"{type(model).__name__} rejects an input of shape {tuple(example_input.shape)}: no sample"
        )
    if attention not in ATTENTION:
        raise UsageError(unknown("way to cut attention", attention, ATTENTION))
    protect = _prefixes(model, protect)

    groups = TracedGroups(trace(model, example_input[:1], inexact, attention), example_input[:1])
    for name, group in groups.items():
        for prefix in protect:
            hit = [layer for layer in group.layers if layer == prefix or layer.startswith(prefix + ".")]
            if hit and group.protected is None:
                groups[name] = replace(group, protected=f"protected by name: {prefix}")
    outputs = [group.layers for group in groups.values() if group.protected == MODEL_OUTPUT]
    lineage_of(model).output_layers = tuple(dict.fromkeys(sum(outputs, ())))
    return groups


def trace(model: nn.Module, example: Tensor, inexact: bool, attention: str = "dims") -> dict[str, ChannelGroup]:
    """Groups by name in forward order; see `channel_groups`. The model is not changed."""
    with preserved_state(model), random_numbers_as_before():
        found = _without_values(model, example, attention)
        if found is not None and not found[0].misled:
            path = found[0].path if found[0].numberless else ()
            groups, refused = _proven(model, example, inexact, found, path)
            if not refused:
                return groups
        # without values the code may go another way: what a trial refuses is traced with them
        found = _follow(twin_of(model), example, attention)
        if found[0].misled:
            found = _follow(twin_of(model), example, attention, found[0].misled)
        return _proven(model, example, inexact, found)[0]


def _proven(
    model: nn.Module, example: Tensor, inexact: bool, found: Followed, path: Sequence[str] = ()
) -> tuple[dict[str, ChannelGroup], bool]:
    """The groups of what `_follow` found, and whether a trial refused any; for `path` see `mismatches`."""
    context, runs, order = found
    groups = named_groups(collect(model, context, runs, order, inexact))
    context.forget_labels()
    starts = {(run.tensor, run.dim): run.start for run in runs}
    count, queries = context.labels.count, context.queries
    groups |= _runs(model, example, with_queries(groups, starts, count, queries.sure))
    mark_removable(groups, context, starts)
    free = {name: group for name, group in groups.items() if group.protected is None and not group.queries}
    groups |= _scaled_by_hand(model, example, free, with_queries(free, starts, count, queries.maybe))
    refused = mismatches(model, example, groups, doubtful_groups(groups, context, runs), path)
    for name, reason in refused.items():
        groups[name] = replace(groups[name], protected=reason)
    return groups, bool(refused)


def _runs(model: nn.Module, example: Tensor, marked: dict[str, ChannelGroup]) -> dict[str, ChannelGroup]:
    """The `marked` groups, protected where the code holds the size of a head: the first one inside each class of
    module tells it for the others, which spares a trial of each."""
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
    """Those `marked` groups whose queries must make up for a scale that the code takes from the size of a head.

    The proof alone cannot tell: where attention matters little for the output, both ways come close.
    """
    marked = {
        name: group for name, group in marked.items() if group.queries and group.exact and group.channels > 1
    }
    pending = [list(marked)] if marked else []
    found: dict[str, ChannelGroup] = {}
    while pending:
        names = pending.pop()
        plain, scaled = (
            distance(model, example, {name: groups[name] for name in names}) for groups in (free, marked)
        )
        if scaled < FAR_BELOW * plain:
            found.update((name, marked[name]) for name in names)
        elif FAR_BELOW * scaled <= plain < math.inf and len(names) > 1 and scaled > 0:  # some so, some so
            pending += [names[: len(names) // 2], names[len(names) // 2 :]]
    return found


def _without_values(model: nn.Module, example: Tensor, attention: str) -> Followed | None:
    """What `_follow` finds on shapes alone; None where the code asks for values."""
    shadow = meta_copy(model)
    if shadow is None:
        return None
    try:
        return _follow(shadow, torch.empty_like(example, device="meta"), attention)
    except UsageError:
        return None  # the code asks for values after all, or does not run at all
