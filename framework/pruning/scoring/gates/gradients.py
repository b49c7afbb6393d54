"""The gradient of a gate on each channel, of each batch and of each sample, without gates in the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from secateur.framework.pruning.channels.groups import ChannelGroup, Groups
from secateur.framework.pruning.scoring.channel_sums import add_units
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gates.capture import Reduce, capturable, capturing, sum_positions
from secateur.framework.pruning.scoring.gates.sites import GateSites
from secateur.framework.pruning.scoring.gradients import Part, each_gradient, freeze, gradient, peek
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

#: by what the square of a sum over n producers is divided
DIVISORS = ("none", "n", "n2")


def check_divisor(who: str, divisor: str) -> None:
    """UsageError unless it is one of DIVISORS."""
    if divisor not in DIVISORS:
        raise UsageError(f"{who}: {unknown('divisor', str(divisor), DIVISORS)}")


def divided(groups: Groups, scores: Mapping[str, Tensor], divisor: str) -> dict[str, Tensor]:
    """Scores of joint gates divided by 1, n or n * n, n the number of the group's producers."""
    power = DIVISORS.index(divisor)
    return {name: score / len(groups[name].producers) ** power for name, score in scores.items()}


def batch_gates(model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups) -> Iterator[Part]:
    """For each batch its size and dL/dz of every channel's gate z = 1, `(channels,)`; inside `scoring`.

    The gate multiplies what the batch norm behind a producer puts out: scale * dL/dscale + shift * dL/dshift, or,
    where no norm follows, the producer's output: sum w * dL/dw + b * dL/db. Several producers of one channel are
    added. L is the mean loss of the batch.
    """
    sample, batches = peek(batches)
    sites = GateSites.find(model, groups, sample[:1])
    if sites.norms.keys() - sites.scales().keys():  # a norm without scale: its output has to tell
        for samples, each in sample_gates(model, batches, loss, groups):
            yield samples, {name: values.sum(1) for name, values in each.items()}
        return
    for samples, gradients in each_gradient(model, batches, loss, sites.parameters()):
        yield samples, add_units(groups, sites.units(gradients))


def sample_gates(model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups) -> Iterator[Part]:
    """As `batch_gates`, but each sample's part of dL/dz: `(channels, samples)`, whose sum over samples that is."""
    sample, batches = peek(batches)
    sites = GateSites.find(model, groups, sample[:1])
    heard, copied = capturable(sites, sample[:2])
    if heard >= set(sites.weights()):
        yield from _heard_gates(sites, copied, batches, loss, groups)
    else:
        yield from _one_by_one(sites, batches, loss, groups)


def output_products(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: LossFunction,
    groups: Groups,
    early: Callable[[Tensor], Tensor],
) -> Iterator[Part]:
    """For each batch its size and a * dL/da of the outputs that gates would multiply; inside `scoring`.

    `(channels, samples, positions)` per group, several producers added. What a single producer gives goes through
    `early` at once, which may take positions together. UsageError, which names it, for a producer whose output no
    module gives.
    """
    sample, batches = peek(batches)
    sites = GateSites.find(model, groups, sample[:1])
    heard, copied = capturable(sites, sample[:2])
    for name in sites.weights():
        if name not in heard:
            raise UsageError(f"what '{name}' puts out cannot be seen: take a criterion of weights or TaylorGate")
    lone = {weight for group in groups.values() for weight in _lone(group, sites)}

    def reduce(weight: str, products: Tensor) -> Tensor:
        return early(products) if weight in lone else products

    yield from _heard_gates(sites, copied, batches, loss, groups, reduce)


def _lone(group: ChannelGroup, sites: GateSites) -> list[str]:
    """The weight that alone produces the group, one unit a channel; empty where there are more."""
    parts = [part for part in group.produced if part.tensor in sites.weights()]
    return [part.tensor for part in parts] if len(parts) == 1 and parts[0].index.shape[1] == 1 else []


def _heard_gates(
    sites: GateSites,
    copied: frozenset[str],
    batches: Iterable[Batch],
    loss: LossFunction,
    groups: Groups,
    reduce: Reduce = sum_positions,
) -> Iterator[Part]:
    freeze(sites.model)
    with capturing(sites, copied, reduce) as found:
        for inputs, targets in batches:
            found.clear()
            value = loss(sites.model(inputs), targets)
            if not value.requires_grad:
                raise UsageError("the loss does not depend on the channels to be scored: there is no gradient")
            value.backward()
            yield len(inputs), joined(sites, groups, found, len(inputs), reduce is not sum_positions)


def joined(
    sites: GateSites, groups: Groups, found: Mapping[str, list[Tensor]], samples: int, positions: bool = False
) -> dict[str, Tensor]:
    """The channels' gates from what was heard at the producers: `(channels, samples, ...)` per group.

    Outputs of several producers may differ in their positions: the smaller ones are at all of them.
    """
    gates: dict[str, Tensor] = {}
    for name, group in groups.items():
        weights = [part.tensor for part in group.produced if part.tensor in sites.weights()]
        most = max((part.shape[2:].numel() for one in weights for part in found.get(one, [])), default=1)
        units = {}
        for weight in weights:
            silence = sites.silence(weight, samples)
            parts = found.get(weight) or [silence[..., None] if positions else silence]
            units[weight] = torch.stack([_spread(part, most) for part in parts]).sum(0)
        gates |= add_units({name: group}, units)
    return gates


def _spread(products: Tensor, positions: int) -> Tensor:
    if products.dim() == 2 or products.shape[2] == positions:
        return products
    return (products.sum(2, keepdim=True) / positions).expand(-1, -1, positions)


def _one_by_one(sites: GateSites, batches: Iterable[Batch], loss: LossFunction, groups: Groups) -> Iterator[Part]:
    """A pass for each sample, with the gradient that the batch's loss has at that sample's outputs."""
    if sites.norms.keys() - sites.scales().keys():
        raise UsageError(f"{type(sites.model).__name__}: the gates behind norms without scale cannot be told")
    parameters = sites.parameters()
    freeze(sites.model, parameters.values())
    for inputs, targets in batches:
        with torch.no_grad():
            outputs = sites.model(inputs)
        outputs = outputs.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(loss(outputs, targets), outputs)
        each = []
        for number in range(len(inputs)):
            for leaf in parameters.values():
                leaf.grad = None
            sites.model(inputs[number : number + 1]).backward(slopes[number : number + 1])
            each.append(sites.units({name: gradient(leaf) for name, leaf in parameters.items()}))
        units = {name: torch.stack([one[name] for one in each], dim=1) for name in each[0]}
        yield len(inputs), add_units(groups, units)
