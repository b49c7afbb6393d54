"""Grouping: from joined labels to named groups of channels with the same slices, and the removable groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import is_depthwise, named_tensors, output_dim, prunable_layers, tensor_name
from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.channels.groups import NOTHING_LEFT, ChannelGroup, Slice
from secateur.framework.pruning.channels.tracing.context import Context


@dataclass(frozen=True)
class Run:
    """The labels of one dimension of one tensor: `start`, `start + 1`, ..."""

    tensor: str
    dim: int
    start: int
    size: int


def collect(
    model: nn.Module, context: Context, runs: list[Run], order: list[str], inexact: bool
) -> list[ChannelGroup]:
    """Return the groups: channels that own equally many positions of the same slices, with the same protection."""
    root = context.labels.components()
    stay, loose = context.labels.reasons(root, inexact, context.dataflow.live(context.ends))
    layers = _outputs(model, runs, order)
    bare = _bare_weights(model, context, runs, layers)
    producing = torch.zeros(len(runs), dtype=torch.bool)
    for number, names in layers.items():
        producing[number] = not all(is_depthwise(model.get_submodule(name)) for name in names)
    producing[list(bare)] = True
    cuts = lineage_of(model).kept
    places = {name: at for at, name in enumerate(order)}
    groups = [
        _group(model, runs, layers, bare, places, cuts, owned, stay.get(component), component not in loose)
        for component, owned in _alike(root, runs, producing, stay, loose)
    ]
    covered = {name for group in groups for name in group.layers}
    known = prunable_layers(model)
    groups += [_closed(model, name) for name in order if name in known and name not in covered]

    def place(group: ChannelGroup) -> tuple[int, int]:
        index = group.produced[0].index
        return places[group.producers[0]], int(index.min()) if index.numel() else 0

    return sorted(groups, key=place)


def _outputs(model: nn.Module, runs: list[Run], order: list[str]) -> dict[int, list[str]]:
    """Return run number of a weight's output dimension -> the layers with this weight, in forward order."""
    first_name = {id(tensor): name for name, tensor in reversed(named_tensors(model).items())}
    number = {(run.tensor, run.dim): at for at, run in enumerate(runs)}
    layers: dict[int, list[str]] = {}
    known = prunable_layers(model)
    for name in order:
        if name not in known:
            continue
        module = known[name]
        key = first_name.get(id(module.weight), tensor_name(name, "weight")), output_dim(module)
        if key in number:
            layers.setdefault(number[key], []).append(name)
    return layers


def _bare_weights(
    model: nn.Module, context: Context, runs: list[Run], layers: Mapping[int, list[str]]
) -> dict[int, str]:
    """Return run number of a weight's output dimension -> its module, for weights outside of layers."""
    made = [labels for labels in context.made if not isinstance(labels, str)]
    if not made:
        return {}
    numbers = context.runs_of(torch.cat(made).unique())
    known = prunable_layers(model)
    owners = {number: runs[number].tensor.rpartition(".")[0] for number in numbers if number not in layers}
    return {number: owner for number, owner in owners.items() if owner not in known}


#: run number -> the positions in it that each channel owns, `(channels, k)`
Owned = dict[int, Tensor]


def _alike(
    root: Tensor, runs: list[Run], producing: Tensor, stay: Mapping[int, str], loose: set[int]
) -> Iterator[tuple[int, Owned]]:
    """Yield one component of each group, and the positions that the group's channels own.

    Only components that some layer produces are channels.
    """
    sizes = torch.tensor([run.size for run in runs])
    run_of = torch.repeat_interleave(torch.arange(len(runs)), sizes)
    position = torch.arange(len(run_of)) - torch.tensor([run.start for run in runs])[run_of]
    produced = torch.zeros(len(root), dtype=torch.bool)
    produced[root[producing[run_of]]] = True
    members = produced[root].nonzero().flatten()
    members = members[root[members].argsort(stable=True)]
    components, counts = root[members].unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    numbers, positions = run_of[members], position[members]
    kinds, count = _kinds(stay, loose, len(root))
    # components with the same runs, equally often, have the same sum of random 64-bit numbers
    codes = torch.randint(-(2**63), 2**63 - 1, (len(runs) + count,), generator=torch.Generator())
    signatures = codes[len(runs) + kinds[components]]
    signatures.scatter_add_(0, torch.repeat_interleave(torch.arange(len(counts)), counts), codes[numbers])
    _, group_of, sizes = signatures.unique(return_inverse=True, return_counts=True)
    for channels in group_of.argsort(stable=True).split(sizes.tolist()):
        first = starts[channels]
        group_runs, widths = numbers[first[0] : first[0] + counts[channels[0]]].unique_consecutive(
            return_counts=True
        )
        owned = positions[first[:, None] + torch.arange(int(widths.sum()))].split(widths.tolist(), dim=1)
        yield int(components[channels[0]]), dict(zip(group_runs.tolist(), owned, strict=True))


def _kinds(stay: Mapping[int, str], loose: set[int], count: int) -> tuple[Tensor, int]:
    """Return a code for each component, int64 `(count,)`, and the number of codes.

    Components have the same code if they have the same reason of protection and the same exactness.
    """
    reasons = {reason: number for number, reason in enumerate(dict.fromkeys(stay.values()), 1)}
    kinds = torch.zeros(count, dtype=torch.int64)
    kinds[list(stay)] = torch.tensor([2 * reasons[reason] for reason in stay.values()], dtype=torch.int64)
    kinds[list(loose)] += 1
    return kinds, 2 * len(reasons) + 2


def _group(
    model: nn.Module,
    runs: list[Run],
    outputs: Mapping[int, list[str]],
    bare: Mapping[int, str],
    places: Mapping[str, int],
    cuts: Mapping[tuple[str, int], Tensor],
    owned: Owned,
    reason: str | None,
    exact: bool,
) -> ChannelGroup:
    run_of = {name: number for number in owned for name in outputs.get(number, ())}
    layers = sorted(run_of, key=places.__getitem__)
    producers = [name for name in layers if not is_depthwise(model.get_submodule(name))]
    run_of = {bare[number]: number for number in reversed(owned) if number in bare} | run_of
    producers = sorted({*producers, *(bare[number] for number in owned if number in bare)}, key=places.__getitem__)
    lead = run_of[producers[0]]
    ascending = owned[lead][:, 0].argsort()
    slices = {
        number: Slice(runs[number].tensor, runs[number].dim, index[ascending]) for number, index in owned.items()
    }
    produced = [slices[lead]] + [
        part
        for number, part in slices.items()
        if number != lead and (number in bare or _is_bias(part, runs[number], producers)
                               or any(name in producers for name in outputs.get(number, ())))
    ]  # fmt: skip
    first = slices[lead].index[:, 0]
    kept = cuts.get((runs[lead].tensor, runs[lead].dim))
    return ChannelGroup(
        name=producers[0],
        channels=len(ascending),
        slices=tuple(slices.values()),
        origin=first.clone() if kept is None else kept[first],
        producers=tuple(producers),
        produced=tuple(produced),
        layers=tuple(layers),
        protected=reason,
        exact=exact,
    )


def _is_bias(part: Slice, run: Run, producers: list[str]) -> bool:
    owner, _, attribute = part.tensor.rpartition(".")
    return owner in producers and attribute.endswith("bias") and run.dim == 0


def doubtful_groups(groups: dict[str, ChannelGroup], context: Context, runs: list[Run]) -> set[str]:
    """Return the names of groups of which the code used a piece that is not one of equal pieces."""
    tensors = {(runs[number].tensor, runs[number].dim) for number in context.doubtful}
    return {
        name
        for name, group in groups.items()
        if tensors and any((part.tensor, part.dim) in tensors for part in group.slices)
    }


def mark_removable(
    groups: dict[str, ChannelGroup], context: Context, starts: Mapping[tuple[str, int], int]
) -> None:
    """Mark, in place, the groups without which the output still depends on the input."""
    group_of = {
        label: name
        for name, group in groups.items()
        for part in group.produced
        if (part.tensor, part.dim) in starts
        for label in (part.index.flatten() + starts[part.tensor, part.dim]).tolist()
    }
    needed = context.dataflow.unavoidable(context.ends, group_of)
    for name, group in groups.items():
        if group.protected is None and name not in needed:
            groups[name] = replace(group, removable=True)


def _closed(model: nn.Module, name: str) -> ChannelGroup:
    """Return a protected group for the outputs of a layer whose weight is computed from other tensors."""
    module, weight = model.get_submodule(name), tensor_name(name, "weight")
    values = module.weight
    assert isinstance(values, Tensor)
    positions = torch.arange(values.shape[output_dim(module)])
    part = Slice(weight, output_dim(module), positions.unsqueeze(1))
    reason = f"unsupported op: {weight} is computed from other tensors"
    if len(positions) == 0:
        reason = NOTHING_LEFT
    elif is_depthwise(module):
        reason = "meets a constant of its size: depthwise convolution"
    return ChannelGroup(name, len(positions), (part,), positions, (name,), (part,), (name,), reason)


def named_groups(groups: list[ChannelGroup]) -> dict[str, ChannelGroup]:
    """Return the groups by the first producer's name, with #1, #2, ... if one layer produces several groups."""
    names = [group.name for group in groups]
    named: dict[str, ChannelGroup] = {}
    for at, group in enumerate(groups):
        number = names[: at + 1].count(group.name)
        name = f"{group.name}#{number}" if names.count(group.name) > 1 else group.name
        named[name] = replace(group, name=name)
    return named
