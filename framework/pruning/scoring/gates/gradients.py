"""Gradients of channel gates per batch and per sample, computed without gates in the network."""

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

#: divisors of the squared sum over n producers: 1, n or n * n
DIVISORS = ("none", "n", "n2")


def check_divisor(who: str, divisor: str) -> None:
    """Raise UsageError unless the divisor is one of DIVISORS."""
    if divisor not in DIVISORS:
        raise UsageError(f"{who}: {unknown('divisor', str(divisor), DIVISORS)}")


def divided(groups: Groups, scores: Mapping[str, Tensor], divisor: str) -> dict[str, Tensor]:
    """Divide the scores of joint gates by 1, n or n * n, where n is the number of the group's producers."""
    power = DIVISORS.index(divisor)
    return {name: score / len(groups[name].producers) ** power for name, score in scores.items()}


def batch_gates(model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups) -> Iterator[Part]:
    """Yield the size of each batch and dL/dz of every channel's gate z = 1; iterate inside `scoring`.

    The gate multiplies the output of the batch norm after a producer: scale * dL/dscale + shift * dL/dshift;
    without a norm it multiplies the producer's output: sum w * dL/dw + b * dL/db. The gradients of several
    producers of one channel are summed: `(channels,)` per group. L is the mean loss of the batch.
    """
    sample, batches = peek(batches)
    sites = GateSites.find(model, groups, sample[:1])
    if sites.norms.keys() - sites.scales().keys():  # a norm without scale: use its output
        for samples, gates in sample_gates(model, batches, loss, groups):
            yield samples, {name: values.sum(1) for name, values in gates.items()}
        return
    for samples, gradients in each_gradient(model, batches, loss, sites.parameters()):
        yield samples, add_units(groups, sites.units(gradients))


def sample_gates(model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups) -> Iterator[Part]:
    """Yield the size of each batch and every sample's part of dL/dz; iterate inside `scoring`.

    The parts are `(channels, samples)` per group; their sum over samples is the gradient of `batch_gates`.
    """
    sample, batches = peek(batches)
    sites = GateSites.find(model, groups, sample[:1])
    captured, copied = capturable(sites, sample[:2])
    if captured >= set(sites.weights()):
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
    """Yield the size of each batch and a * dL/da of the gated outputs a; iterate inside `scoring`.

    The products are `(channels, samples, positions)` per group, summed over several producers. The products of a
    sole producer are first passed to `early`, which may reduce the positions to save memory. Raises UsageError for
    a producer whose output is not that of a module.
    """
    sample, batches = peek(batches)
    sites = GateSites.find(model, groups, sample[:1])
    captured, copied = capturable(sites, sample[:2])
    for name in sites.weights():
        if name not in captured:
            raise UsageError(f"the output of '{name}' cannot be observed: use a weight criterion or TaylorGate")
    lone = {weight for group in groups.values() for weight in _lone(group, sites)}

    def reduce(weight: str, products: Tensor) -> Tensor:
        return early(products) if weight in lone else products

    yield from _heard_gates(sites, copied, batches, loss, groups, reduce)


def _lone(group: ChannelGroup, sites: GateSites) -> list[str]:
    """Return the weight of a sole producer with one unit per channel; an empty list otherwise."""
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
    with capturing(sites, copied, reduce) as products:
        for inputs, targets in batches:
            products.clear()
            value = loss(sites.model(inputs), targets)
            if not value.requires_grad:
                raise UsageError("the loss does not depend on the channels to be scored: there is no gradient")
            value.backward()
            yield len(inputs), joined(sites, groups, products, len(inputs), reduce is not sum_positions)


def joined(
    sites: GateSites, groups: Groups, found: Mapping[str, list[Tensor]], samples: int, positions: bool = False
) -> dict[str, Tensor]:
    """Combine the producers' captured products by channel: `(channels, samples, ...)` per group.

    If the outputs of several producers differ in their number of positions, the smaller ones are spread evenly.
    """
    gates: dict[str, Tensor] = {}
    for name, group in groups.items():
        weights = [part.tensor for part in group.produced if part.tensor in sites.weights()]
        most = max((part.shape[2:].numel() for one in weights for part in found.get(one, [])), default=1)
        units = {}
        for weight in weights:
            zeros = sites.silence(weight, samples)
            parts = found.get(weight) or [zeros[..., None] if positions else zeros]
            units[weight] = torch.stack([_spread(part, most) for part in parts]).sum(0)
        gates |= add_units({name: group}, units)
    return gates


def _spread(products: Tensor, positions: int) -> Tensor:
    if products.dim() == 2 or products.shape[2] == positions:
        return products
    return (products.sum(2, keepdim=True) / positions).expand(-1, -1, positions)


def _one_by_one(sites: GateSites, batches: Iterable[Batch], loss: LossFunction, groups: Groups) -> Iterator[Part]:
    """Run one pass per sample, backward from the gradient of the batch's loss at that sample's outputs."""
    if sites.norms.keys() - sites.scales().keys():
        raise UsageError(f"{type(sites.model).__name__}: gates after norms without scale cannot be computed")
    parameters = sites.parameters()
    freeze(sites.model, parameters.values())
    for inputs, targets in batches:
        with torch.no_grad():
            outputs = sites.model(inputs)
        outputs = outputs.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(loss(outputs, targets), outputs)
        samples = []
        for number in range(len(inputs)):
            for leaf in parameters.values():
                leaf.grad = None
            sites.model(inputs[number : number + 1]).backward(slopes[number : number + 1])
            samples.append(sites.units({name: gradient(leaf) for name, leaf in parameters.items()}))
        units = {name: torch.stack([sample[name] for sample in samples], dim=1) for name in samples[0]}
        yield len(inputs), add_units(groups, units)
