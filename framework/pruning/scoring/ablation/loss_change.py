"""The exact change of the loss when channels are removed, for all channels of a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from secateur.framework.pruning.channels.groups import ChannelGroup, Groups
from secateur.framework.pruning.scoring.ablation.consumers import Read, reads_of
from secateur.framework.pruning.scoring.ablation.replay import Replay
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gradients import peek

#: maximum number of elements of the largest activation for one block of sets
REPLAY_BLOCK = 2**23
#: tolerances of the check that both ways to remove channels agree: relative to the change, and to the outputs
RELATIVE_ERROR, ROUNDING = 1e-3, 1e-5
#: number of samples of this check
TRIED = 4

#: group name -> sets of channels that are removed together, `(sets, channels in a set)`
Sets = Mapping[str, Tensor]


def loss_changes(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups, sets: Sets | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the size of each batch and, per group, the loss without each set of channels minus the loss:
    `(sets,)`.

    Call it inside `scoring`. By default each channel is a set. Removing a channel sets every entry that it owns to
    zero, as in a cut. Layers up to those that read the channel are computed once, the outputs of the readers are
    corrected by the contribution of the channel, and the following layers are computed for many sets at once. This
    shortcut is verified once for each group against setting the channels' entries to zero set by set, which is
    used if the two disagree or if the network cannot be traced.
    """
    if sets is None:
        sets = {name: torch.arange(group.channels)[:, None] for name, group in groups.items()}
    sample, batches = peek(batches)
    with torch.no_grad():
        trial = _Network(model, sample[:TRIED])
        apart = {name for name, group in groups.items() if trial.proves(group)}
    network: _Network | None = None
    for inputs, targets in batches:
        with torch.no_grad():
            network = _Network(model, inputs, network)
            changes = {
                name: network.changes(group, sets[name], targets, loss, name in apart)
                for name, group in groups.items()
            }
        yield len(inputs), changes


class _Network:
    """One network on one batch."""

    def __init__(self, model: nn.Module, inputs: Tensor, last: _Network | None = None) -> None:
        self.model, self.inputs = model, inputs
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.replay: Replay | None
        try:
            known = last.replay if last is not None and last.inputs.shape == inputs.shape else None
            self.replay = known.load(inputs) if known is not None else Replay(model, inputs)
        except Exception:  # data-dependent control flow, or an operation that cannot be traced: run the network
            self.replay = None
        self.whole = model(inputs) if self.replay is None else self.replay.outputs

    def changes(
        self, group: ChannelGroup, sets: Tensor, targets: Tensor, loss: LossFunction, apart: bool
    ) -> Tensor:
        """Return the loss without each set of the group's channels minus the loss; `apart` is from `proves`."""
        reads = self._reads(group) if apart else {}
        if not reads or self.replay is None:
            value = loss(self.model(self.inputs), targets)  # the replayed pass may round differently
            return torch.stack([loss(self._masked(group, channels), targets) for channels in sets]) - value
        value = loss(self.whole, targets)
        order = self.replay.after(reads)
        changes = value.new_zeros(len(sets))
        nonzero = torch.stack([read.nonzero() for read in reads.values()]).any(0)
        alive = nonzero[sets.to(nonzero.device)].any(1).nonzero().flatten()  # other sets do not change the loss
        if not len(alive):
            return changes
        size = max((leaf.numel() for node in order for leaf in tree_leaves(self.replay.values[node])), default=1)
        for block in alive.split(max(1, REPLAY_BLOCK // size)):
            outputs = _corrected(self.replay, order, reads, sets[block.cpu()])
            separate = [tree_map(itemgetter(at), outputs) for at in range(len(block))]
            changes[block] = torch.stack([loss(out, targets) for out in separate]) - value
        return changes

    def proves(self, group: ChannelGroup) -> bool:
        """Whether both ways to remove channels agree, for the even and for the odd channels of a group."""
        reads = self._reads(group)
        if not reads or self.replay is None:
            return False
        order = self.replay.after(reads)
        try:
            for first in range(min(2, group.channels)):
                half = torch.arange(first, group.channels, 2)
                expected = tree_leaves(self._masked(group, half))
                found = tree_leaves(_corrected(self.replay, order, reads, half[None]))
                if not all(map(_agree, found, expected, tree_leaves(self.whole))):
                    return False
        except RuntimeError:  # an operation that cannot be batched over many changes
            return False
        return True

    def _reads(self, group: ChannelGroup) -> dict[Node, Read]:
        return reads_of(self.model, group, self.replay) if self.replay is not None else {}

    def _masked(self, group: ChannelGroup, channels: Tensor) -> Any:
        """Return the outputs with every entry of some channels set to zero."""
        changed: dict[str, Tensor] = {}
        for part in group.slices:
            if part.tensor in self.parameters:
                tensor = changed.get(part.tensor, self.parameters[part.tensor].detach())
                index = part.index[channels.cpu()].flatten().to(tensor.device)
                changed[part.tensor] = tensor.index_fill(part.dim, index, 0)
        return functional_call(self.model, changed, (self.inputs,))


def _corrected(replay: Replay, order: list[Node], reads: Mapping[Node, Read], sets: Tensor) -> Any:
    return replay.run(order, len(sets), {node: partial(read.without, sets) for node, read in reads.items()})


def _agree(found: Tensor, expected: Tensor, whole: Tensor) -> bool:
    change = torch.linalg.vector_norm((expected - whole).double())
    rounding = ROUNDING * torch.linalg.vector_norm(whole.double())
    return bool(torch.linalg.vector_norm((found[0] - expected).double()) <= RELATIVE_ERROR * change + rounding)
