"""Layers that read a group's channels, as operations of a replayed forward pass, with some channels removed."""

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
    """One operation that reads a group's channels.

    Attributes:
        positions: Positions of each channel along the input's channel dimension, `(channels, positions)`.
        weight: The operation's weight.
        place: Index of the input among the operation's arguments.
    """

    positions: Tensor
    weight: Tensor
    place: int

    def given(self, node: Node) -> Node:
        """Return the node of the input."""
        source = node.args[self.place]
        assert isinstance(source, Node)
        return source

    def nonzero(self, node: Node, replay: Replay) -> Tensor:
        """Return the mask of channels with a nonzero value in the input, bool `(channels,)`."""
        values: Tensor = replay.values[self.given(node)]
        axis = 1 if _is_convolution(node) else values.dim() - 1
        used = (values.movedim(axis, 0).flatten(1) != 0).any(1)
        return used[self.positions.to(used.device)].any(1)

    def without(self, node: Node, replay: Replay, sets: Tensor) -> Callable[[Stacked], Tensor]:
        """Return a function that computes the operation's result without each set of channels, `(sets, ...)`."""
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
        """Repeat the whole operation with the channels of the input set to zero."""
        rows = torch.arange(len(positions), device=values.device)[:, None]
        values.movedim(2 if _is_convolution(node) else values.dim() - 1, 1)[rows, positions] = 0
        args = [replay.values[arg] if isinstance(arg, Node) else arg for arg in node.args]
        args[self.place] = values.flatten(0, 1)
        result: Tensor = node.target(*args)  # type: ignore[operator]
        return result.unflatten(0, values.shape[:2])

    def _convolved(self, node: Node, values: Tensor, positions: Tensor) -> Tensor:
        """Compute the contribution of each set to a convolution: each set is a group of one convolution."""
        sets, count = positions.shape
        weight = self.weight[:, positions.flatten()].unflatten(1, (sets, count)).transpose(0, 1).flatten(0, 1)
        stride, padding, dilation = node.args[3:6]
        convolve: Any = CONVOLVE[values.dim() - 2]
        given = values[:, positions.flatten()]
        result = convolve(given, weight, None, stride, padding, dilation, sets)
        return result.unflatten(1, (sets, -1)).transpose(0, 1)

    def _multiplied(self, node: Node, values: Tensor, positions: Tensor) -> Tensor:
        """Compute the contribution of each set to a matrix product."""
        weight = self.weight[:, positions].permute(1, 2, 0)
        return torch.bmm(values[:, positions].transpose(0, 1), weight)


def spacious(changes: int, like: Tensor) -> Tensor:
    """Allocate a tensor for all changes of `like`, `(changes, ...)`; channels-last for images."""
    layout = torch.channels_last if like.dim() == 4 else torch.contiguous_format
    flat = (changes * like.shape[0], *like.shape[1:])
    return torch.empty(flat, dtype=like.dtype, device=like.device, memory_format=layout).unflatten(
        0, (changes, -1)
    )


def _is_convolution(node: Node) -> bool:
    return node.target.overloadpacket.__name__ == "convolution"  # type: ignore[union-attr]


def reads_of(model: nn.Module, group: Groups, replay: Replay) -> dict[Node, Read] | None:
    """Return the operations that read the channels of a single group; None if any other operation reads them."""
    ((name, channel_group),) = group.items()
    channels = channel_group.channels
    first = {id(parameter): key for key, parameter in model.named_parameters()}
    reads: dict[Node, Read] = {}
    for reader in readers_of(model, {name: torch.ones(channels, dtype=torch.bool)}, group):
        order = torch.argsort(reader.channels, stable=True)
        if len(order) % channels:
            return None
        positions = reader.positions[order].view(channels, -1)
        weight: Any = reader.module.weight
        for node in replay.users_of(first[id(weight)]):
            place = _place(node, replay, first[id(weight)])
            if place is None:
                return None
            reads[node] = Read(positions, weight.detach(), place)
    return reads or None


def _place(node: Node, replay: Replay, weight: str) -> int | None:
    """Return the index of an operation's input argument; None if the operation is not a supported layer."""
    packet = getattr(node.target, "overloadpacket", None)
    name = packet.__name__ if packet is not None else ""
    if name == "convolution":
        known = node.args[1] is replay.parameters[weight] and not node.args[6]
        return 0 if known and len(node.args) > 8 else None
    place = {"mm": 0, "addmm": 1}.get(name)
    if place is None or node.kwargs or not isinstance(node.args[place], Node):
        return None
    return place if replay.is_transposed(node.args[place + 1], weight) else None
