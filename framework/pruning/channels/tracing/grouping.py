"""Grouping: from joined labels to named groups of channels with the same slices, and the removable groups."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import is_depthwise, named_tensors, output_dim, prunable_layers, tensor_name
from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.channels.groups import NOTHING_LEFT, ChannelGroup, Slice
from secateur.framework.pruning.channels.tracing.context import Context
from secateur.framework.pruning.channels.tracing.labels import Run

#: run number -> the positions in it that each channel owns, `(channels, k)`
Owned = dict[int, Tensor]


class Grouping:
    """Computes the groups of a traced network."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        self._model, self._context, self._runs = model, context, context.labels.runs
        self._layers, self._kept = prunable_layers(model), lineage_of(model).kept
        #: place of each module in forward order
        self._places = {name: at for at, name in enumerate(context.order())}
        #: run number of a weight's output dimension -> the layers with this weight, in forward order
        self._outputs = self._outputs_of_layers()
        #: run number of a weight's output dimension -> its module, for weights outside of layers
        self._bare = self._bare_weights()

    def collect(self, inexact: bool) -> dict[str, ChannelGroup]:
        """Return the groups: channels that own equally many positions of the same slices, equally protected."""
        labels, dataflow = self._context.labels, self._context.dataflow
        root = labels.components()
        stay, loose = labels.reasons(root, inexact, dataflow.live(self._context.ends))
        groups = [
            self._group(owned, stay.get(component), component not in loose)
            for component, owned in self._alike(root, stay, loose)
        ]
        covered = {name for group in groups for name in group.layers}
        missing = [name for name in self._places if name in self._layers and name not in covered]
        groups += [_closed(self._model, name) for name in missing]

        def place(group: ChannelGroup) -> tuple[int, int]:
            index = group.produced[0].index
            return self._places[group.producers[0]], int(index.min()) if index.numel() else 0

        return _named(sorted(groups, key=place))

    def _outputs_of_layers(self) -> dict[int, list[str]]:
        first_name = {id(tensor): name for name, tensor in reversed(named_tensors(self._model).items())}
        number = {(run.tensor, run.dim): at for at, run in enumerate(self._runs)}
        outputs: dict[int, list[str]] = {}
        for name in filter(self._layers.__contains__, self._places):
            module = self._layers[name]
            key = first_name.get(id(module.weight), tensor_name(name, "weight")), output_dim(module)
            if key in number:
                outputs.setdefault(number[key], []).append(name)
        return outputs

    def _bare_weights(self) -> dict[int, str]:
        made = [labels for labels in self._context.made if not isinstance(labels, str)]
        numbers = self._context.runs_of(torch.cat(made).unique()) if made else []
        owners = {at: self._runs[at].tensor.rpartition(".")[0] for at in numbers if at not in self._outputs}
        return {number: owner for number, owner in owners.items() if owner not in self._layers}

    def _is_producer(self, layer: str) -> bool:
        return not is_depthwise(self._layers[layer])

    def _alike(self, root: Tensor, stay: Mapping[int, str], loose: set[int]) -> Iterator[tuple[int, Owned]]:
        """Yield one component of each group, and the positions that the group's channels own.

        Only components that some layer produces are channels.
        """
        runs = self._runs
        producing = torch.zeros(len(runs), dtype=torch.bool)
        for number, names in self._outputs.items():
            producing[number] = any(map(self._is_producer, names))
        producing[list(self._bare)] = True
        run_of = self._context.labels.runs_of(torch.arange(len(root)))
        position = torch.arange(len(run_of)) - torch.tensor([run.start for run in runs])[run_of]
        produced = torch.zeros(len(root), dtype=torch.bool)
        produced[root[producing[run_of]]] = True
        members = produced[root].nonzero().flatten()
        members = members[root[members].argsort(stable=True)]
        components, counts = root[members].unique_consecutive(return_counts=True)
        starts = counts.cumsum(0) - counts
        numbers, positions = run_of[members], position[members]
        # a number for each reason of protection and exactness, 0 for free and exact components
        why = {component: (stay.get(component), component in loose) for component in {*stay, *loose}}
        numbered = {reason: at for at, reason in enumerate(dict.fromkeys(why.values()), 1)}
        kinds = torch.zeros(len(root), dtype=torch.int64)
        kinds[list(why)] = torch.tensor([numbered[reason] for reason in why.values()], dtype=torch.int64)
        # components with the same runs, equally often, have the same sum of random 64-bit numbers
        codes = torch.randint(-(2**63), 2**63 - 1, (len(runs) + len(numbered) + 1,), generator=torch.Generator())
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

    def _group(self, owned: Owned, reason: str | None, exact: bool) -> ChannelGroup:
        run_of = {name: number for number in owned for name in self._outputs.get(number, ())}
        layers = sorted(run_of, key=self._places.__getitem__)
        bare = {self._bare[number]: number for number in reversed(owned) if number in self._bare}
        producers = sorted({*filter(self._is_producer, layers), *bare}, key=self._places.__getitem__)
        lead = (bare | run_of)[producers[0]]
        ascending = owned[lead][:, 0].argsort()
        slices = {
            number: Slice(self._runs[number].tensor, self._runs[number].dim, index[ascending])
            for number, index in owned.items()
        }
        made = [
            number
            for number in owned
            if number in self._bare
            or _is_bias(self._runs[number], producers)
            or any(name in producers for name in self._outputs.get(number, ()))
        ]
        produced = [slices[number] for number in sorted(made, key=lambda number: number != lead)]
        first = slices[lead].index[:, 0]
        kept = self._kept.get((slices[lead].tensor, slices[lead].dim))
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


def _is_bias(run: Run, producers: list[str]) -> bool:
    owner, _, attribute = run.tensor.rpartition(".")
    return owner in producers and attribute.endswith("bias") and run.dim == 0


def doubtful_groups(groups: dict[str, ChannelGroup], context: Context) -> set[str]:
    """Return the names of groups of which the code used a piece that is not one of equal pieces."""
    tensors = {context.labels.runs[number][:2] for number in context.doubtful}
    return {name for name, group in groups.items() if any(part[:2] in tensors for part in group.slices)}


def mark_removable(groups: dict[str, ChannelGroup], context: Context) -> None:
    """Mark, in place, the groups without which the output still depends on the input."""
    starts = context.labels.starts()
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


def _named(groups: list[ChannelGroup]) -> dict[str, ChannelGroup]:
    """Return the groups by the first producer's name, with #1, #2, ... if one layer produces several groups."""
    names = [group.name for group in groups]
    named: dict[str, ChannelGroup] = {}
    for at, group in enumerate(groups):
        number = names[: at + 1].count(group.name)
        name = f"{group.name}#{number}" if names.count(group.name) > 1 else group.name
        named[name] = replace(group, name=name)
    return named
