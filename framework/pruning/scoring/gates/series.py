"""Second derivatives with respect to joint gates of producers in series, as in a residual stage.

A gate z multiplies the output x of each producer of a channel: a = z * x. If the network is piecewise linear and a
producer j computes from the output of another, d2L/dz2 has the term 2 * dL/da_j . dx_j/dz. `products` computes the
sum of these over the producers, by a backward pass for each channel, from the producers to the gate. Two layers on
the way are narrow, since only one channel matters at either end, and are computed for this channel alone:

- at the end, the layer of the producer: only the rows of its weight that give the channel;
- at the start, the first layer that reads the channels: only the columns of its weight for the channel. The pass
  stops there. From the input of the layer back to the gate all channels are separate, so that one more
  backward pass serves all of them.

In a stage of n blocks with two convolutions each, a pass thus goes through 2 n - 2 of 2 n convolutions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.functional import conv2d, fold
from torch.nn.grad import conv2d_input

from secateur.framework.network.layers import prunable_layers
from secateur.framework.network.outputs import hooked
from secateur.framework.pruning.channels.groups import ChannelGroup, Slice
from secateur.framework.pruning.scoring.gates.gated import Application, Observed, gated
from secateur.framework.pruning.scoring.gates.linearity import operations
from secateur.framework.pruning.scoring.gates.sites import GateSites

#: where passes begin, and the vector that the pass for a channel begins with
End = tuple[GradientEdge, Callable[[int], Tensor]]
#: layer -> slice of its weight that reads the channels of a group
Reading = dict[str, Slice]


@dataclass
class Convolution:
    """A call of a convolution.

    Attributes:
        layer: The layer.
        shape: The shape of the input.
        inputs: The input in the graph.
        output: The output in the graph.
    """

    layer: Any
    shape: torch.Size
    inputs: GradientEdge
    output: GradientEdge

    @classmethod
    def of(cls, layer: nn.Module, inputs: Tensor, output: Tensor) -> Convolution | None:
        """Return the call; None for other layers, and where the gradient of the input is not a convolution."""
        if type(layer) is not nn.Conv2d or layer.groups > 1 or layer.padding_mode != "zeros" or inputs.dim() != 4:
            return None
        if isinstance(layer.padding, str) or not inputs.requires_grad:
            return None
        return cls(layer, inputs.shape, get_gradient_edge(inputs), get_gradient_edge(output))

    def from_rows(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """Return the gradient of the input by that of the output, of which only some channels count."""
        layer, weight, gradient = self.layer, self.layer.weight[rows], gradient[:, rows]
        sizes = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
        padding = [dilation * (size - 1) - padding for size, dilation, padding in sizes]
        if set(layer.stride) != {1} or min(padding) < 0:
            return conv2d_input(self.shape, weight, gradient, layer.stride, layer.padding, layer.dilation)
        # of few channels this is many times as fast as the operation of a backward pass
        return conv2d(gradient, weight.flip(2, 3).transpose(0, 1), padding=padding, dilation=layer.dilation)

    def to_columns(self, gradient: Tensor, columns: Tensor) -> Tensor:
        """Return the gradient of some channels of the input by that of the output."""
        layer = self.layer
        parts = layer.weight[:, columns].flatten(1).T @ gradient.flatten(2)
        return fold(parts, self.shape[2:], layer.kernel_size, layer.dilation, layer.padding, layer.stride)


class Reader(NamedTuple):
    """The first layer that reads the channels of a group, which is called after `calls` applications of gates."""

    call: Any
    columns: Tensor
    calls: int


class GatedPass:
    """A forward pass with gates, with a record of the layers that give or read the channels of joint gates.

    Attributes:
        sites: The places of the gates.
        gates: Group -> gate of each channel, `(channels,)`.
        calls: Every application of a gate.
        outputs: The result of the network.
    """

    def __init__(self, sites: GateSites, inputs: Tensor) -> None:
        self.sites = sites
        self.calls: list[Application] = []
        self._layers: dict[str, list[Convolution | None]] = defaultdict(list)
        self._readers: dict[str, Reader] = {}
        layers = prunable_layers(sites.model)
        joint = [group for name, group in sites.groups.items() if len(sites.producers(name)) > 1]
        reading = {group.name: _reading(sites.model, layers, group) for group in joint}
        names = {name for group in joint for name in (*group.producers, *reading[group.name])}
        hooks = [(layers[name], partial(self._called, name, reading)) for name in names if name in layers]
        # before the hooks of the gates, which may multiply the outputs of the same layers
        with hooked(hooks), gated(sites, calls=self.calls) as self.gates:
            self.outputs: Any = sites.model(inputs)

    def _called(
        self, name: str, reading: dict[str, Reading], layer: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> Tensor:
        call = Convolution.of(layer, args[0] if args else kwargs["input"], output)
        for group, slices in reading.items():
            if name in slices and group not in self._readers:
                if call is not None:
                    output = Observed.apply(output, None, _passed_on, True)
                    call = replace(call, output=get_gradient_edge(output))
                columns = slices[name].index.to(output.device)
                self._readers[group] = Reader(call, columns, len(self.calls))
        self._layers[name].append(call)
        return output

    def series(self, name: str) -> Series | None:
        """Return the producers of a group that compute from the output of another; None if there are none."""
        own = [at for at, call in enumerate(self.calls) if call.weight in self.sites.producers(name)]
        later = [at for at in own[1:] if _depends(self.calls[at].before, self.gates[name])]
        if not later:
            return None
        uses = [self._layers[self.calls[at].weight.rpartition(".")[0]] for at in later]
        reader = self._readers.get(name)
        narrow = reader is not None and reader.call is not None and reader.calls <= later[0]
        return Series(
            own[: own.index(later[-1])],
            {at: use[0] if len(use) == 1 else None for at, use in zip(later, uses, strict=True)},
            reader if narrow else None,
        )


class Series(NamedTuple):
    """The way between the producers of a joint gate.

    Attributes:
        starts: The applications of the gate before the last.
        ends: Those that depend on an earlier one -> the call of the producer, None if that is not narrow.
        reader: The layer at the start, None if it is not narrow.
    """

    starts: list[int]
    ends: dict[int, Convolution | None]
    reader: Reader | None

    @property
    def length(self) -> int:
        """Number of gated outputs that a backward pass goes through."""
        last = max(self.ends)
        first = self.starts[0] if self.reader is None else self.reader.calls
        return max(0, last - first - (self.ends[last] is not None))


def products(sites: GateSites, inputs: Tensor, by_outputs: Tensor) -> dict[str, Tensor]:
    """Return the sum over the producers j of a group of dL/da_j . dx_j/dz, `(channels,)` per group.

    Args:
        sites: The places of the gates.
        inputs: Inputs of the network.
        by_outputs: dL/dy of the outputs y.
    """
    run = GatedPass(sites, inputs)
    edges = [call.after for call in run.calls]
    slopes = torch.autograd.grad(run.outputs, edges, by_outputs, retain_graph=True, allow_unused=True)
    found = {name: torch.zeros_like(gate) for name, gate in run.gates.items()}
    for name, gate in run.gates.items():
        if series := run.series(name):
            units = {part.tensor: part.index.to(gate.device) for part in sites.groups[name].produced}
            used = {at: call for at, call in series.ends.items() if slopes[at] is not None}
            ends = [_end(run, at, call, slopes[at], units) for at, call in used.items()]
            found[name] += _passes(run, series, gate, ends, units) if ends else 0
    return found


def _passes(run: GatedPass, series: Series, gate: Tensor, ends: list[End], units: dict[str, Tensor]) -> Tensor:
    """Run a backward pass for each channel, from the producers at the ends to the others."""
    starts = [run.calls[at] for at in series.starts]
    reader, found = series.reader, torch.zeros_like(gate)
    entries = gate.new_zeros(reader.call.shape if reader else 0)
    with _stopped(starts, reader) as stopped:
        for channel in range(len(gate)):
            vectors = [vector(channel) for _, vector in ends]
            gradients = torch.autograd.grad(
                [edge for edge, _ in ends],
                [call.after for call in starts],
                vectors,
                retain_graph=True,
                allow_unused=True,
            )
            for call, gradient in zip(starts, gradients, strict=True):
                if gradient is not None:
                    axis, rows = run.sites.axis(call.weight, gradient), units[call.weight][channel]
                    values = call.before.detach().index_select(axis, rows)
                    found[channel] += (gradient.index_select(axis, rows) * values).sum()
            if reader and stopped:
                columns = reader.columns[channel]
                entries[:, columns] = reader.call.to_columns(stopped.pop(), columns)
    if reader:
        found += torch.autograd.grad(reader.call.inputs, gate, entries, retain_graph=True)[0]
    return found


def _end(run: GatedPass, at: int, call: Convolution | None, slope: Tensor, units: dict[str, Tensor]) -> End:
    """Return where the passes begin at a producer, and the vector that a pass for one channel begins with."""
    weight, before, _ = run.calls[at]
    if call is None:
        return get_gradient_edge(before), partial(_only, slope, run.sites.axis(weight, before), units[weight])
    # from the gate back to the layer every channel is separate
    (slope,) = torch.autograd.grad(before, call.output, slope, retain_graph=True)
    return call.inputs, lambda channel: call.from_rows(slope, units[weight][channel])


def _only(slope: Tensor, axis: int, units: Tensor, channel: int) -> Tensor:
    """Return a copy that is zero but for the units of a channel along `axis`."""
    return torch.zeros_like(slope).index_copy_(axis, units[channel], slope.index_select(axis, units[channel]))


@contextmanager
def _stopped(starts: list[Application], reader: Reader | None) -> Iterator[list[Tensor]]:
    """Context manager in which gates have no gradients; those at the reader are put into the list it yields."""
    stopped: list[Tensor] = []
    nodes: list[Any] = [call.after.node for call in starts]
    for node in nodes:
        node.idle = True
    if reader:
        reader.call.output.node.receive = stopped.append
    try:
        yield stopped
    finally:
        for node in nodes:
            node.idle = False
        if reader:
            reader.call.output.node.receive = _passed_on


def _passed_on(gradient: Tensor) -> Tensor:
    return gradient


def _depends(output: Tensor, leaf: Tensor) -> bool:
    """Whether a tensor was computed from a leaf."""
    return any(getattr(node, "variable", None) is leaf for node in operations([output]))


def _reading(model: nn.Module, layers: dict[str, nn.Module], group: ChannelGroup) -> Reading:
    """Return the layers that read the channels; nothing where other operations might read them, too."""
    weights = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    produced = {(part.tensor, part.dim) for part in group.produced}
    found = {}
    for part in group.slices:
        name = part.tensor.rpartition(".")[0]
        depthwise = name in group.layers and name not in group.producers
        if part.tensor in weights and (part.tensor, part.dim) not in produced and not depthwise:
            found[name] = part
    return found if group.exact and found.keys() <= layers.keys() else {}
