"""The gate of a channel: a multiplication by one, whose first and second derivatives are those of the loss.

`Observed` has no gate and only gives the gradient of the output.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import replaced
from secateur.framework.pruning.scoring.gates.sites import GateSites

#: function of a producer's weight name, its output, and `source`, `norm` and `copy` as in `Gate.forward`, which
#: returns the output with a gate
Operation = Callable[..., Tensor]
#: function of the gradient of an output, which returns what is passed on; nothing if this is None
Receive = Callable[[Tensor], Tensor | None]


class Application(NamedTuple):
    """Application of a gate to the output of a producer.

    Attributes:
        weight: Name of the producer's weight.
        before: The output before the gate.
        after: The output after the gate, as it was before operations in place.
    """

    weight: str
    before: Tensor
    after: GradientEdge


class Gate(torch.autograd.Function):
    """output * gate for a gate of ones, without a multiplication.

    The gate has the shape of the output, with size 1 along the dimensions that share a gate. The output of a norm
    is computed again in the backward pass, from its input `source`, which autograd keeps in any case.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gate: Tensor, source: Tensor, norm: Any, copy: bool) -> Tensor:  # type: ignore[override]
        """Return the output, or a copy of it where it is modified in place later."""
        ctx.save_for_backward(source, gate)
        ctx.norm, ctx.idle = norm, False
        return output.clone() if copy else output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Return the gradients of the output and of the gate, which can be differentiated again."""
        if ctx.idle:  # the gradient of the gate is not needed
            return grad, None, None, None, None
        source, gate = ctx.saved_tensors
        if torch.is_grad_enabled():  # the factor one and the graph are needed only if these are differentiated
            output = source if ctx.norm is None else ctx.norm.forward(source)
            return grad * gate, (grad * output).sum_to_size(gate.shape), None, None, None
        products = grad * source if ctx.norm is None else ctx.norm.forward(source).mul_(grad)
        positions = [dim for dim in range(2, products.dim()) if gate.shape[dim] == 1]
        if positions:  # sums over adjacent elements first, which is faster
            products = products.sum(positions, keepdim=True)
        return grad, products.sum_to_size(gate.shape), None, None, None


class Observed(torch.autograd.Function):
    """The identity, which passes its gradient to `receive` in the backward pass and returns what this returns."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor | None, receive: Receive, copy: bool) -> Tensor:  # type: ignore[override]
        """Return the output, or a copy of it where it is modified in place later.

        `anchor` requires a gradient, so that there is a backward pass also for an output without one.
        """
        ctx.receive = receive
        return output.clone() if copy else output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Return the gradient that is passed on."""
        return ctx.receive(grad), None, None, None


@contextmanager
def gated(
    sites: GateSites, samples: int | None = None, calls: list[Application] | None = None, keep: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Context manager in which the network has gates; yields ones for each group, the gates.

    They are `(channels,)`, or `(samples, channels)` with gates for each sample. The outputs of the network are
    those without gates.

    Args:
        sites: The places of the gates.
        samples: Number of samples that have gates of their own; None for one gate for all samples.
        calls: Every application of a gate is added to this list.
        keep: Whether outputs of norms are kept in memory, which batched backward passes need.
    """
    shape = () if samples is None else (samples,)
    gates: dict[str, Tensor] = {}
    units: dict[str, Tensor] = {}
    for name, group in sites.groups.items():
        first = sites.model.get_parameter(group.produced[0].tensor)
        gates[name] = first.new_ones(*shape, group.channels).requires_grad_()
        for part in group.produced:
            index = part.index.to(first.device)
            ones = first.new_ones(*shape, sites.model.get_parameter(part.tensor).shape[part.dim])
            values = gates[name].repeat_interleave(index.shape[1], dim=-1)
            units[part.tensor] = units.get(part.tensor, ones).index_copy(-1, index.flatten(), values)
    scaled = {}
    if samples is None:
        dims = {part.tensor: part.dim for group in sites.groups.values() for part in group.produced}
        for name, tensor in sites.scaled.items():
            parameter = sites.model.get_parameter(name).detach()
            dim = dims[name] if name == tensor else 0
            scaled[name] = parameter * along(units[tensor], parameter.dim(), dim)

    def multiply(weight: str, output: Tensor, *origin: Any) -> Tensor:
        gate = along(units[weight], output.dim(), sites.axis(weight, output))
        result: Tensor = Gate.apply(output, gate, *origin)
        if calls is not None:
            calls.append(Application(weight, output, get_gradient_edge(result)))
        return result

    with attached(sites, multiply, keep), replaced(sites.model, scaled):
        yield gates


def along(units: Tensor, dims: int, dim: int) -> Tensor:
    """Reshape `(units,)` or `(samples, units)` to `dims` dimensions with the units along `dim`."""
    shape = [1] * dims
    if units.dim() > 1:
        shape[0] = len(units)
    shape[dim] = units.shape[-1]
    return units.view(shape)


@contextmanager
def attached(sites: GateSites, operation: Operation, keep: bool = False) -> Iterator[None]:
    """Context manager in which the outputs are replaced by the results of `operation`; `keep` as in `gated`."""

    def apply(weight: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        norm = module if weight in sites.norms and not keep else None
        source = output if norm is None else args[0] if args else kwargs["input"]
        return operation(weight, output, source, norm, weight in sites.copied)

    model = sites.model
    with hooked((model.get_submodule(name), partial(apply, weight)) for weight, name in sites.outputs.items()):
        yield
