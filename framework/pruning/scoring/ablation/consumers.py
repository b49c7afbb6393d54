"""Layers that read a group's channels, as operations of a replayed forward pass, with some channels removed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from secateur.framework.pruning.channels.consumers import readers_of
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.scoring.ablation.replay import Replay, Stacked


@dataclass(frozen=True)
class Read:
    """One operation that reads a group's channels.

    Attributes:
        node: The operation.
        replay: The forward pass with it.
        positions: Positions of each channel along the input's channel dimension, `(channels, positions)`.
        weight: The operation's weight.
        place: Index of the input among the operation's arguments.
    """

    node: Node
    replay: Replay
    positions: Tensor
    weight: Tensor
    place: int

    @property
    def source(self) -> Node:
        """The node of the input."""
        source = self.node.args[self.place]
        assert isinstance(source, Node)
        return source

    @property
    def is_convolution(self) -> bool:
        """Whether the operation is a convolution, else a matrix product."""
        return _name(self.node) == "convolution"

    def nonzero(self) -> Tensor:
        """Return the mask of channels with a nonzero value in the input, bool `(channels,)`."""
        values: Tensor = self.replay.values[self.source]
        axis = 1 if self.is_convolution else values.dim() - 1
        used = (values.movedim(axis, 0).flatten(1) != 0).any(1)
        return used[self.positions.to(used.device)].any(1)

    def without(self, sets: Tensor, stacked: Stacked) -> Tensor:
        """Return the operation's result without each set of channels, `(sets, ...)`."""
        positions = self.positions[sets].flatten(1).to(self.weight.device)
        if self.source in stacked:
            return self._again(stacked[self.source].clone(), positions)
        values = self.replay.values[self.source]
        if self.is_convolution and self.node.args[8] != 1:
            return self._again(values.expand(len(sets), *values.shape).clone(), positions)
        added = self._convolved if self.is_convolution else self._multiplied
        whole = self.replay.values[self.node]
        result = _spacious(len(sets), whole)
        torch.sub(whole, added(values, positions), out=result)
        return result

    def _again(self, values: Tensor, positions: Tensor) -> Tensor:
        """Repeat the whole operation with the channels of the input set to zero."""
        rows = torch.arange(len(positions), device=values.device)[:, None]
        values.movedim(2 if self.is_convolution else values.dim() - 1, 1)[rows, positions] = 0
        args = [self.replay.values[arg] if isinstance(arg, Node) else arg for arg in self.node.args]
        args[self.place] = values.flatten(0, 1)
        result: Tensor = self.node.target(*args)  # type: ignore[operator]
        return result.unflatten(0, values.shape[:2])

    def _convolved(self, values: Tensor, positions: Tensor) -> Tensor:
        """Compute the contribution of each set to a convolution: each set is a group of one convolution."""
        sets, count = positions.shape
        weight = self.weight[:, positions.flatten()].unflatten(1, (sets, count)).transpose(0, 1).flatten(0, 1)
        given = values[:, positions.flatten()]
        result: Tensor = torch.ops.aten.convolution(given, weight, None, *self.node.args[3:8], sets)
        return result.unflatten(1, (sets, -1)).transpose(0, 1)

    def _multiplied(self, values: Tensor, positions: Tensor) -> Tensor:
        """Compute the contribution of each set to a matrix product."""
        weight = self.weight[:, positions].permute(1, 2, 0)
        return torch.bmm(values[:, positions].transpose(0, 1), weight)


def _spacious(changes: int, like: Tensor) -> Tensor:
    """Allocate a tensor for all changes of `like`, `(changes, ...)`; channels-last for images."""
    layout = torch.channels_last if like.dim() == 4 else torch.contiguous_format
    flat = (changes * like.shape[0], *like.shape[1:])
    empty = torch.empty(flat, dtype=like.dtype, device=like.device, memory_format=layout)
    return empty.unflatten(0, (changes, -1))


def reads_of(model: nn.Module, group: ChannelGroup, replay: Replay) -> dict[Node, Read]:
    """Return the operations that read the channels of a group; none if any other operation reads them."""
    first = {id(parameter): key for key, parameter in model.named_parameters()}
    reads: dict[Node, Read] = {}
    all_channels = {group.name: torch.ones(group.channels, dtype=torch.bool)}
    for reader in readers_of(model, all_channels, {group.name: group}):
        order = torch.argsort(reader.channels, stable=True)
        if len(order) % group.channels:
            return {}
        positions = reader.positions[order].view(group.channels, -1)
        weight: Any = reader.module.weight
        for node in replay.users_of(first[id(weight)]):
            place = _place(node, replay, first[id(weight)])
            if place is None:
                return {}
            reads[node] = Read(node, replay, positions, weight.detach(), place)
    return reads


def _name(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else ""


def _place(node: Node, replay: Replay, weight: str) -> int | None:
    """Return the index of an operation's input argument; None if the operation is not a supported layer."""
    name = _name(node)
    if name == "convolution":
        known = node.args[1] is replay.parameters[weight] and not node.args[6]
        return 0 if known and len(node.args) > 8 else None
    place = {"mm": 0, "addmm": 1}.get(name)
    if place is None or node.kwargs or not isinstance(node.args[place], Node):
        return None
    return place if replay.is_transposed(node.args[place + 1], weight) else None
