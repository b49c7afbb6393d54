"""First and second derivatives of the loss with respect to a gate on each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.framework.network.batch_norm import folded
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.criterion import WORTH_HALVING, LossFunction
from secateur.framework.pruning.scoring.gates.gated import gated
from secateur.framework.pruning.scoring.gates.gradients import samples_apart
from secateur.framework.pruning.scoring.gates.linearity import piecewise_linear
from secateur.framework.pruning.scoring.gates.series import GatedPass, products
from secateur.framework.pruning.scoring.gates.sites import GateSites, following_norms
from secateur.framework.pruning.scoring.gradients import freeze
from secateur.utils.errors import UsageError

#: maximum number of elements of a block of products with the Hessian of the outputs
CURVATURE_BLOCK = 2**24
#: number of rows of second derivatives per backward pass
ROWS = 16

Derivatives = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Curvature:
    """Plan for the second derivatives: from the gradients of the outputs, or one row of the Hessian per channel.

    If the network is piecewise linear, the outputs y are linear in each gate of a producer, and in the joint gate
    z of several producers as long as none of them computes from the output of another. Then d2L/dz2 = (dy/dz) .
    H (dy/dz), where H is the Hessian of L with respect to y, which takes one backward pass per output for all
    channels together. In series, as in a residual stage, the second derivatives of y between two producers of a
    channel are added, see `series.products`. This takes a backward pass per channel, but only through the layers
    between the producers, and no second derivative of the network. In a network that is not
    piecewise linear a gate takes its row of the Hessian, by a backward pass through the gradient, one per channel.

    Attributes:
        direct: The gates whose outputs are piecewise linear in each producer.
        rows: The gates that are computed row by row.
        serial: Groups of `direct` with producers in series -> share of the layers in a pass between them.
        outputs: Number of outputs per sample.
    """

    direct: GateSites
    rows: GateSites
    serial: dict[str, float]
    outputs: int

    @classmethod
    def plan(cls, model: nn.Module, groups: Groups, sample: Tensor) -> Curvature:
        """Build the plan from a batch of one or two samples; call it inside `scoring`."""
        freeze(model)
        sites = _without_norms(GateSites.find(model, groups, sample[:1]), sample[:1])
        direct = sites.of(name for name in groups if sites.on_outputs(name))
        run = GatedPass(direct, sample)
        outputs = run.outputs
        if not isinstance(outputs, Tensor) or len(outputs) != len(sample):
            raise UsageError(
                "second derivatives need a network with a single output tensor that has one row per sample"
            )
        if not (samples_apart(direct, sample) and piecewise_linear(sites.model, [outputs])):
            direct = sites.of(())
        found = {name: series for name in direct.groups if (series := run.series(name))}
        serial = {name: series.length / len(run.calls) for name, series in found.items()}
        rows = sites.of(name for name in groups if name not in direct.groups)
        return cls(direct, rows, serial, outputs[0].numel())

    @property
    def passes(self) -> float:
        """Cost in training passes: a backward pass without weight gradients counts a third, a row one."""
        rows = sum(group.channels for group in self.rows.groups.values())
        serial = sum(share * self.direct.groups[name].channels for name, share in self.serial.items())
        return (2 + self.outputs + serial) / 3 + (1 + rows if rows else 0)

    def of(self, inputs: Tensor, targets: Tensor, loss: LossFunction) -> Derivatives:
        """Return dL/dz and d2L/dz2 of the mean loss of a batch, `(channels,)` per group in the groups' order."""
        first, second = self._by_slopes(inputs, targets, loss) if self.direct.groups else ({}, {})
        if self.rows.groups:
            more = self._by_rows(inputs, targets, loss)
            first, second = first | more[0], second | more[1]
        return first, second

    def _by_slopes(self, inputs: Tensor, targets: Tensor, loss: LossFunction) -> Derivatives:
        parts = inputs.split(-(-len(inputs) // 2) if len(inputs) >= WORTH_HALVING else len(inputs))
        outputs, slopes = zip(*map(self._slopes, parts), strict=True)
        leaf = torch.cat(outputs).requires_grad_()
        (by_outputs,) = torch.autograd.grad(loss(leaf, targets), leaf, create_graph=True)
        first, second = {}, {}
        for name in self.direct.groups:
            slope = torch.cat([part.pop(name) for part in slopes], dim=1)
            slope = slope.view(-1, *leaf.shape)  # (channels, samples, outputs)
            first[name] = (slope * by_outputs.detach()).flatten(1).sum(1)
            second[name] = _curvatures(by_outputs, leaf, slope, max(1, CURVATURE_BLOCK // leaf.numel()))
        if self.serial:
            for part, factors in zip(parts, by_outputs.detach().split(len(parts[0])), strict=True):
                for name, values in products(self.direct.of(self.serial), part, factors).items():
                    second[name] += 2 * values
        return first, second

    def _slopes(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outputs, and their gradients by each gate, `(channels, samples, outputs)` per group."""
        with gated(self.direct, len(inputs)) as gates:
            outputs = self.direct.model(inputs)
        columns = outputs.flatten(1).unbind(1)
        slopes = [
            torch.autograd.grad(
                column.sum(), list(gates.values()), retain_graph=at < len(columns), materialize_grads=True
            )
            for at, column in enumerate(columns, start=1)
        ]
        by_gate = [torch.stack(parts, dim=2).movedim(1, 0) for parts in zip(*slopes, strict=True)]
        return outputs.detach(), dict(zip(gates, by_gate, strict=True))

    def _by_rows(self, inputs: Tensor, targets: Tensor, loss: LossFunction) -> Derivatives:
        # fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH), gated(self.rows, keep=True) as gates:
            value = loss(self.rows.model(inputs), targets)
            slopes = torch.autograd.grad(value, list(gates.values()), create_graph=True, materialize_grads=True)
            first = {name: slope.detach() for name, slope in zip(gates, slopes, strict=True)}
            second = {
                name: _curvatures(slope, gate, torch.eye(len(gate), dtype=gate.dtype, device=gate.device), ROWS)
                for (name, gate), slope in zip(gates.items(), slopes, strict=True)
            }
        return first, second


def _without_norms(sites: GateSites, sample: Tensor) -> GateSites:
    """Return the places in a copy without the norms that directly follow a producer, which takes less time."""
    direct = following_norms(sites.model, sites.groups, sample, directly=True)
    norms = {
        weight.rpartition(".")[0]: norm for weight, norm in direct.items() if sites.outputs.get(weight) == norm
    }
    return GateSites.find(folded(sites.model, norms), sites.groups, sample)


def _curvatures(slope: Tensor, leaf: Tensor, vectors: Tensor, size: int) -> Tensor:
    """Compute v . H v for many vectors v, `size` at once, where H is the derivative of `slope` by `leaf`."""
    if not slope.requires_grad:
        return vectors.new_zeros(len(vectors))
    values = []
    for block in vectors.split(size):
        (products,) = torch.autograd.grad(
            slope, leaf, block, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        values.append((block * products).flatten(1).sum(1))
    return torch.cat(values)
