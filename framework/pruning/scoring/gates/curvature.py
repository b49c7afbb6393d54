"""First and second derivatives of the loss with respect to a gate on each channel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gates.capture import capturable, capturing, sum_positions
from secateur.framework.pruning.scoring.gates.differentiable_gates import gated
from secateur.framework.pruning.scoring.gates.gradients import joined
from secateur.framework.pruning.scoring.gates.linearity import piecewise_linear
from secateur.framework.pruning.scoring.gates.sites import GateSites
from secateur.framework.pruning.scoring.gradients import freeze, peek
from secateur.utils.errors import UsageError

#: maximum number of elements of a block of products with the Hessian of the outputs
CURVATURE_BLOCK = 2**24
#: number of rows of second derivatives per backward pass
ROWS = 16

Derivatives = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Curvature:
    """Plan for the second derivatives: from the gradients of the outputs, or one row of the Hessian per channel.

    If the network is piecewise linear and a gate is applied once, the outputs y are linear in the gate z, and
    d2L/dz2 = (dy/dz) . H (dy/dz), where H is the Hessian of L with respect to the outputs. This takes one backward
    pass per output for all channels together. A joint gate of several producers, in series as in a residual stage,
    or a gate in a network that is not piecewise linear takes its row of the Hessian by a backward pass through the
    gradient, one per channel.

    Attributes:
        sites: The gates of all channels.
        copied: Producers' weights whose outputs are modified in place, see `capturing`.
        direct: Groups that are computed from the gradients of the outputs.
        rows: Groups that are computed row by row.
        outputs: Number of outputs per sample.
    """

    sites: GateSites
    copied: frozenset[str]
    direct: Groups
    rows: Groups
    outputs: int

    @classmethod
    def plan(cls, model: nn.Module, groups: Groups, sample: Tensor) -> Curvature:
        """Build the plan from a batch of one or two samples; call it inside `scoring`."""
        sites = GateSites.find(model, groups, sample[:1])
        captured, copied = capturable(sites, sample)
        freeze(model)
        with capturing(sites, copied, sum_positions) as products:
            outputs = model(sample)
            if not isinstance(outputs, Tensor) or len(outputs) != len(sample):
                raise UsageError(
                    "second derivatives need a network with a single output tensor that has one row per sample"
                )
            linear = piecewise_linear(model, [outputs])
            if outputs.requires_grad:
                outputs.sum().backward()
        once = {weight for weight in captured if len(products.get(weight, ())) <= 1}
        direct = {}
        for name, group in groups.items():
            weights = [part.tensor for part in group.produced if part.tensor in sites.weights()]
            if linear and len(weights) == 1 and weights[0] in once:
                direct[name] = group
        rows = {name: group for name, group in groups.items() if name not in direct}
        return cls(sites, copied, direct, rows, outputs[0].numel())

    @property
    def passes(self) -> float:
        """Cost in training passes: a backward pass without weight gradients counts a third, a row one."""
        channels = sum(group.channels for group in self.rows.values())
        return (2 + self.outputs) / 3 + (1 + channels if channels else 0)

    def of(self, inputs: Tensor, targets: Tensor, loss: LossFunction) -> Derivatives:
        """Return dL/dz and d2L/dz2 of the mean loss of a batch, `(channels,)` per group in the groups' order."""
        first, second = self._by_slopes(inputs, targets, loss) if self.direct else ({}, {})
        if self.rows:
            more = self._by_rows(inputs, targets, loss)
            first, second = first | more[0], second | more[1]
        return first, second

    def _by_slopes(self, inputs: Tensor, targets: Tensor, loss: LossFunction) -> Derivatives:
        freeze(self.sites.model)
        slopes: dict[str, list[Tensor]] = {name: [] for name in self.direct}
        with capturing(self.sites, self.copied, sum_positions) as products:
            outputs = self.sites.model(inputs)
            flat = outputs.flatten(1)
            for number in range(flat.shape[1]):
                products.clear()
                flat[:, number].sum().backward(retain_graph=number < flat.shape[1] - 1)
                for name, slope in joined(self.sites, self.direct, products, len(inputs)).items():
                    slopes[name].append(slope)
        leaf = outputs.detach().requires_grad_()
        (by_outputs,) = torch.autograd.grad(loss(leaf, targets), leaf, create_graph=True)
        first, second = {}, {}
        for name, parts in slopes.items():
            slope = torch.stack(parts, dim=2).view(-1, *leaf.shape)  # (channels, samples, outputs)
            first[name] = (slope * by_outputs.detach()).flatten(1).sum(1)
            second[name] = (slope * _products(by_outputs, leaf, slope)).flatten(1).sum(1)
        return first, second

    def _by_rows(self, inputs: Tensor, targets: Tensor, loss: LossFunction) -> Derivatives:
        freeze(self.sites.model)
        # fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH), gated(self.sites, self.rows) as (gates, run):
            value = loss(run(inputs), targets)
            slopes = torch.autograd.grad(value, list(gates.values()), create_graph=True, materialize_grads=True)
            first = {name: slope.detach() for name, slope in zip(gates, slopes, strict=True)}
            second = {name: _diagonal(slope, gates[name]) for name, slope in zip(gates, slopes, strict=True)}
        return first, second


def batch_curvatures(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
) -> Iterator[tuple[int, Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """Yield the size of each batch, dL/dz and d2L/dz2 of every channel's gate; iterate inside `scoring`."""
    sample, batches = peek(batches)
    plan = Curvature.plan(model, groups, sample[:2])
    for inputs, targets in batches:
        first, second = plan.of(inputs, targets, loss)
        yield len(inputs), {name: first[name] for name in groups}, {name: second[name] for name in groups}


def _products(slope: Tensor, leaf: Tensor, vectors: Tensor) -> Tensor:
    """Compute H v for many vectors v, where H is the derivative of `slope` with respect to `leaf`."""
    if not slope.requires_grad:
        return torch.zeros_like(vectors)
    size = max(1, CURVATURE_BLOCK // leaf.numel())
    blocks = [
        torch.autograd.grad(slope, leaf, block, retain_graph=True, is_grads_batched=True)[0]
        for block in vectors.split(size)
    ]
    return torch.cat(blocks)


def _diagonal(slope: Tensor, gate: Tensor) -> Tensor:
    """Compute the diagonal of the derivative of `slope` with respect to `gate`, in blocks of rows."""
    if not slope.requires_grad:
        return torch.zeros_like(gate)
    blocks = []
    for rows in torch.eye(len(gate), dtype=gate.dtype, device=gate.device).split(ROWS):
        (block,) = torch.autograd.grad(
            slope, gate, rows, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        blocks.append((block * rows).sum(1))
    return torch.cat(blocks)
