"""Gradients of one batch after the other, for measures that square those of each batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from secateur.framework.criterion import Batch, LossFunction, add_gradients, mean_gradients
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.producers import add_units, producer_parameters
from secateur.utils.errors import UsageError

#: samples, and a number for each entry
Part = tuple[int, Mapping[str, Tensor]]


def peek(batches: Iterable[Batch]) -> tuple[Tensor, Iterator[Batch]]:
    """The first inputs, and all the batches still; UsageError where there is none."""
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise UsageError("the criterion needs data and got no batch")
    return first[0], chain([first], rest)


def each_gradient(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, parameters: Mapping[str, nn.Parameter]
) -> Iterator[Part]:
    """For each batch its size and the gradients of its mean loss, to be written over; inside `scoring`."""
    freeze(model, parameters.values())
    leaves = list(parameters.values())
    for batch in batches:
        for leaf in leaves:
            leaf.grad = None
        samples, _ = add_gradients(model, [batch], loss, leaves)
        yield samples, {name: gradient(leaf).div_(samples) for name, leaf in parameters.items()}


def freeze(model: nn.Module, leaves: Iterable[Tensor] = ()) -> None:
    """Only `leaves` require a gradient from here on."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for leaf in leaves:
        leaf.requires_grad_(True)


def gradient(leaf: Tensor) -> Tensor:
    """The gradient, zeros where nothing depends on the tensor."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def mean_over_batches(parts: Iterable[Part]) -> dict[str, Tensor]:
    """The mean over batches, each alike whatever its size, as the Taylor family has it; UsageError without one."""
    return mean_of((1, values) for _, values in parts)


def mean_of(parts: Iterable[Part]) -> dict[str, Tensor]:
    """The mean over batches, each weighing by its size; UsageError without a batch."""
    total: dict[str, Tensor] = {}
    samples = 0
    for size, values in parts:
        samples += size
        for name, value in values.items():
            if name in total:
                total[name].add_(value, alpha=size)
            else:
                total[name] = size * value
    if samples == 0:
        raise UsageError("the criterion needs data and got no batch")
    return {name: value / samples for name, value in total.items()}


def softened(loss: LossFunction, temperature: float) -> LossFunction:
    """The loss of outputs / temperature."""
    return lambda outputs, targets: loss(outputs / temperature, targets)


def weight_slopes(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups, temperature: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """w and g of the producers' weights, g of the mean loss of outputs / temperature over all samples.

    g may be written over: weights by the million are not copied for each product.
    """
    weights = producer_parameters(model, groups, biases=False)
    with scoring(model):
        gradients, _ = mean_gradients(model, batches, softened(loss, temperature), weights)
    return {name: (weight.detach(), gradients[name]) for name, weight in weights.items()}


def over_channels(groups: Groups, elements: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum of what is shaped like the producers' parameters over each channel's entries: `(channels,)` a group."""
    dims = {part.tensor: part.dim for group in groups.values() for part in group.produced}
    units = {
        name: element.movedim(dims[name], 0).flatten(1).sum(1) if element.dim() > 1 else element
        for name, element in elements.items()
        if name in dims
    }
    return add_units(groups, units)


def one_sample_each(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The samples of all batches as batches of their own."""
    for inputs, targets in batches:
        yield from zip(inputs.split(1), targets.split(1), strict=True)


def check_temperature(who: str, temperature: float, name: str = "temperature") -> None:
    """UsageError unless it is above 0 and finite."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"{who}: {name} must be above 0 and finite, got {temperature}")


def check_flow_options(who: str, temperature: float, samples: int, name: str = "temperature") -> None:
    """UsageError unless the temperature is above 0 and there are samples."""
    check_temperature(who, temperature, name)
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise UsageError(f"{who}: samples must be a whole number from 1 on, got {samples}")
