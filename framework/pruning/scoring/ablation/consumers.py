"""Layers that read a group's channels, as operations of a replayed pass, and their outputs without some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from secateur.framework.pruning.channels.consumers import readers_of
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.ablation.replay import Replay, Stacked

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Read:
    """One reader; `positions` says where each channel lies along its input, `(channels, positions)`."""

    positions: Tensor
    weight: Tensor
    #: which of the operation's arguments is the input
    place: int

    def given(self, node: Node) -> Node:
        """The node of the input."""
        found = node.args[self.place]
        assert isinstance(found, Node)
        return found

    def nonzero(self, node: Node, replay: Replay) -> Tensor:
        """Which channels are not zero everywhere in the input, bool `(channels,)`."""
        values: Tensor = replay.values[self.given(node)]
        axis = 1 if _is_convolution(node) else values.dim() - 1
        used = (values.movedim(axis, 0).flatten(1) != 0).any(1)
        return used[self.positions.to(used.device)].any(1)

    def without(self, node: Node, replay: Replay, sets: Tensor) -> Callable[[Stacked], Tensor]:
        """The operation's result without the channels of each set, `(sets, ...)`."""
        positions = self.positions[sets].flatten(1).to(self.weight.device)

        def compute(stacked: Stacked) -> Tensor:
            source = self.given(node)
            if source in stacked:
                return self._again(node, replay, stacked[source].clone(), positions)
            if _is_convolution(node) and node.args[8] != 1:
                values = replay.values[source]
                return self._again(node, replay, values.expand(len(sets), *values.shape).clone(), positions)
            added = self._convolved if _is_convolution(node) else self._multiplied
            whole = replay.values[node]
            result = spacious(len(sets), whole)
            torch.sub(whole, added(node, replay.values[source], positions), out=result)
            return result

        return compute

    def _again(self, node: Node, replay: Replay, values: Tensor, positions: Tensor) -> Tensor:
        """The whole operation, the input's channels set to zero."""
        rows = torch.arange(len(positions), device=values.device)[:, None]
        values.movedim(2 if _is_convolution(node) else values.dim() - 1, 1)[rows, positions] = 0
        args = [replay.values[one] if isinstance(one, Node) else one for one in node.args]
        args[self.place] = values.flatten(0, 1)
        result: Tensor = node.target(*args)  # type: ignore[operator]
        return result.unflatten(0, values.shape[:2])

    def _convolved(self, node: Node, values: Tensor, positions: Tensor) -> Tensor:
        """What the channels of each set add to a convolution: each set is a group of one convolution."""
        sets, count = positions.shape
        weight = self.weight[:, positions.flatten()].unflatten(1, (sets, count)).transpose(0, 1).flatten(0, 1)
        stride, padding, dilation = node.args[3:6]
        convolve: Any = CONVOLVE[values.dim() - 2]
        given = values[:, positions.flatten()]
        result = convolve(given, weight, None, stride, padding, dilation, sets)
        return result.unflatten(1, (sets, -1)).transpose(0, 1)

    def _multiplied(self, node: Node, values: Tensor, positions: Tensor) -> Tensor:
        """What they add to a product of matrices."""
        weight = self.weight[:, positions].permute(1, 2, 0)
        return torch.bmm(values[:, positions].transpose(0, 1), weight)


def spacious(changes: int, like: Tensor) -> Tensor:
    """An empty tensor for changes of one, `(changes, ...)`; images lie channels-last, which convolutions like."""
    layout = torch.channels_last if like.dim() == 4 else torch.contiguous_format
    flat = (changes * like.shape[0], *like.shape[1:])
    return torch.empty(flat, dtype=like.dtype, device=like.device, memory_format=layout).unflatten(
        0, (changes, -1)
    )


def _is_convolution(node: Node) -> bool:
    return node.target.overloadpacket.__name__ == "convolution"  # type: ignore[union-attr]


def reads_of(model: nn.Module, group: Groups, replay: Replay) -> dict[Node, Read] | None:
    """The operations that read the channels of the one group; None where something reads them in another way."""
    ((name, own),) = group.items()
    first = {id(one): key for key, one in model.named_parameters()}
    found: dict[Node, Read] = {}
    for reader in readers_of(model, {name: torch.ones(own.channels, dtype=torch.bool)}, group):
        order = torch.argsort(reader.channels, stable=True)
        if len(order) % own.channels:
            return None
        positions = reader.positions[order].view(own.channels, -1)
        weight: Any = reader.module.weight
        for node in replay.users_of(first[id(weight)]):
            place = _place(node, replay, first[id(weight)])
            if place is None:
                return None
            found[node] = Read(positions, weight.detach(), place)
    return found or None


def _place(node: Node, replay: Replay, weight: str) -> int | None:
    """Which argument of an operation with the weight is its input; None where it is no layer we know."""
    packet = getattr(node.target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else ""
    if name == "convolution":
        known = node.args[1] is replay.parameters[weight] and not node.args[6]
        return 0 if known and len(node.args) > 8 else None
    place = {"mm": 0, "addmm": 1}.get(name)
    if place is None or node.kwargs or not isinstance(node.args[place], Node):
        return None
    return place if replay.is_transposed(node.args[place + 1], weight) else None
