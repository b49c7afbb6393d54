"""Gradients of one batch after the other, for measures that square those of each batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.pruning.scoring.criterion import WORTH_HALVING, Batch, LossFunction
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


def mean_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: LossFunction,
    parameters: Mapping[str, nn.Parameter],
) -> tuple[dict[str, Tensor], float]:
    """Gradient of the mean loss over all samples, and that loss; call it inside `scoring`.

    `loss` is a mean over its batch, so a batch weighs by its size. The gradients accumulate in `.grad`, which
    autograd does in place.
    """
    tensors = list(parameters.values())
    for tensor in tensors:
        tensor.requires_grad_(True)
    samples, mean_loss = add_gradients(model, batches, loss, tensors)
    found = {}
    for name, tensor in parameters.items():
        gradient = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
        found[name] = gradient.div_(samples)
    return found, mean_loss


def add_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, inputs: Sequence[Tensor] | None
) -> tuple[int, float]:
    """Add the gradients of the samples' losses to `.grad` of `inputs` (None: all that require one).

    The gradients of the first batch are there while the next ones pass, so these go in halves, or the peak of
    memory would be above that of a training step: where the loss is a mean over samples that do not see each
    other. Returns the number of samples and their mean loss.
    """
    samples, total = 0, torch.zeros((), dtype=torch.float64)
    halve = not any(map(_mixes_samples, model.modules()))
    for number, (images, targets) in enumerate(batches):
        for part, wanted in _halves(images, targets) if halve and number else [(images, targets)]:
            outputs = model(part)
            value = loss(outputs, wanted) * len(part)
            if not value.requires_grad:
                raise UsageError("the loss does not depend on the weights to be scored: there is no gradient")
            halve = halve and (number > 0 or _is_mean(loss, outputs, wanted, value))
            value.backward(inputs=inputs)
            total += value.detach().cpu()
            samples += len(part)
            del outputs, value  # they hold the graph's end while the next one grows
    if samples == 0:
        raise UsageError("the criterion needs data and got no batch")
    return samples, float(total) / samples


def _halves(images: Tensor, targets: Tensor) -> list[Batch]:
    size = -(-len(images) // 2)
    return list(zip(images.split(size), targets.split(size), strict=True))


def _mixes_samples(module: nn.Module) -> bool:
    """A norm in training mode takes the statistics of the batch, one that has none of its own in eval mode too."""
    norm = isinstance(module, nn.modules.batchnorm._NormBase)
    return norm and (module.training or module.running_mean is None)


@torch.no_grad()
def _is_mean(loss: LossFunction, outputs: Any, targets: Any, total: Tensor) -> bool:
    """Whether the loss of a batch is the mean of the losses of its halves, weighed by their sizes."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return False
    if len(outputs) != len(targets) or len(outputs) < WORTH_HALVING:
        return False
    parts = torch.stack([loss(part, wanted) * len(part) for part, wanted in _halves(outputs, targets)])
    return bool((parts.sum() - total).abs() <= 1e-4 * parts.abs().sum())
