"""Gradients of the loss over batches: the mean over all samples, and one gradient per batch."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.pruning.scoring.criterion import WORTH_HALVING, Batch, LossFunction
from secateur.utils.errors import UsageError

#: number of samples of a batch, and a tensor by name
Part = tuple[int, Mapping[str, Tensor]]


def peek(batches: Iterable[Batch]) -> tuple[Tensor, Iterator[Batch]]:
    """Return the first inputs and an iterator over all batches; raise UsageError if there is no batch."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise UsageError("the criterion needs data and got no batch")
    return first[0], chain([first], iterator)


def each_gradient(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, parameters: Mapping[str, nn.Parameter]
) -> Iterator[Part]:
    """Yield the size of each batch and the gradients of its mean loss; call it inside `scoring`.

    The gradients may be modified in place by the caller.
    """
    freeze(model, parameters.values())
    for batch in batches:
        for leaf in parameters.values():
            leaf.grad = None
        yield len(batch[0]), mean_gradients(model, [batch], loss, parameters)[0]


def freeze(model: nn.Module, leaves: Iterable[Tensor] = ()) -> None:
    """Disable gradients of all parameters except `leaves`."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for leaf in leaves:
        leaf.requires_grad_(True)


def mean_of(parts: Iterable[Part], equal: bool = False) -> dict[str, Tensor]:
    """Return the mean over batches weighted by their sizes, or equally; UsageError without a batch."""
    total: dict[str, Tensor] = {}
    weights = 0
    for size, values in parts:
        weight = 1 if equal else size
        weights += weight
        for name, value in values.items():
            if name in total:
                total[name].add_(value, alpha=weight)
            else:
                total[name] = weight * value
    if weights == 0:
        raise UsageError("the criterion needs data and got no batch")
    return {name: value / weights for name, value in total.items()}


def softened(loss: LossFunction, temperature: float) -> LossFunction:
    """Return the loss function of outputs / temperature."""
    return lambda outputs, targets: loss(outputs / temperature, targets)


def check_flow_options(who: str, temperature: float, samples: int = 1, name: str = "temperature") -> None:
    """Raise UsageError unless the temperature is above 0 and finite, and `samples` is a positive integer."""
    if not 0 < temperature < math.inf:
        raise UsageError(f"{who}: {name} must be above 0 and finite, got {temperature}")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise UsageError(f"{who}: samples must be a positive integer, got {samples}")


def mean_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: LossFunction,
    parameters: Mapping[str, nn.Parameter],
) -> tuple[dict[str, Tensor], float]:
    """Compute the gradient of the mean loss over all samples, and that loss.

    Call it inside `scoring`, which restores the gradients and the flags of the parameters afterwards. The
    gradients accumulate in `.grad`; the returned tensors share its memory and may be modified in place.

    Args:
        model: The network.
        batches: The data, iterated over once. Batches are weighted by their sizes.
        loss: The loss function, a mean over the batch.
        parameters: Parameters of the model by name; `requires_grad` is set for each of them.

    Returns:
        The gradients by the names of `parameters`, each of the parameter's shape (zeros if the loss does not
        depend on the parameter), and the mean loss over all samples.

    Raises:
        UsageError: If there is no batch, or if the loss does not depend on any parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import mean_gradients, prunable_weights, scoring
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> _ = nn.init.ones_(model[0].weight)
        >>> batches = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))]
        >>> with scoring(model):
        ...     mean_gradients(model, batches, nn.functional.mse_loss, prunable_weights(model))
        ({'0.weight': tensor([[10.]])}, 5.0)
    """
    first: dict[Tensor, str] = {}  # a parameter may have two names
    for name, tensor in parameters.items():
        first.setdefault(tensor.requires_grad_(True), name)
    samples, mean_loss = _add_gradients(model, batches, loss, list(first))
    means = {name: gradient_of(tensor).div_(samples) for tensor, name in first.items()}
    gradients = {
        name: means[name] if name in means else means[first[tensor]].clone() for name, tensor in parameters.items()
    }
    return gradients, mean_loss


def gradient_of(leaf: Tensor) -> Tensor:
    """Return `.grad`, or zeros if the leaf has none."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def _add_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, inputs: Sequence[Tensor]
) -> tuple[int, float]:
    """Add the gradients of the samples' losses to `.grad` of `inputs`.

    From the second batch on the accumulated gradients occupy memory during the pass, so these batches are split in
    two to keep the peak memory at that of a training step. This requires that the loss is a mean over independent
    samples. Returns the number of samples and their mean loss.
    """
    _, batches = peek(batches)
    samples, total = 0, torch.zeros((), dtype=torch.float64)
    halve = not any(map(_mixes_samples, model.modules()))
    for number, batch in enumerate(batches):
        for images, targets in halves(*batch) if halve and number else [batch]:
            outputs = model(images)
            value = loss(outputs, targets) * len(images)
            if not value.requires_grad:
                raise UsageError("the loss does not depend on the weights to be scored: there is no gradient")
            halve = halve and (number > 0 or _is_mean(loss, outputs, targets, value))
            value.backward(inputs=inputs)
            total += value.detach().cpu()
            samples += len(images)
            del outputs, value  # they would keep the graph alive during the next forward pass
    return samples, float(total) / samples


def halves(images: Tensor, targets: Tensor) -> list[Batch]:
    """Split a batch in two."""
    size = -(-len(images) // 2)
    return list(zip(images.split(size), targets.split(size), strict=True))


def _mixes_samples(module: nn.Module) -> bool:
    """Whether the module uses batch statistics: a norm in training mode, or one without running statistics."""
    norm = isinstance(module, nn.modules.batchnorm._NormBase)
    return norm and (module.training or module.running_mean is None)


@torch.no_grad()
def _is_mean(loss: LossFunction, outputs: Any, targets: Any, total: Tensor) -> bool:
    """Whether the loss of a batch is the mean of the losses of its halves, weighted by their sizes."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return False
    if len(outputs) != len(targets) or len(outputs) < WORTH_HALVING:
        return False
    parts = torch.stack([loss(part, wanted) * len(part) for part, wanted in halves(outputs, targets)])
    return bool((parts.sum() - total).abs() <= 1e-4 * parts.abs().sum())


def in_double(values: Tensor) -> Tensor:
    """Convert to float64, or to float32 on devices without it."""
    return values.to(torch.float32 if values.is_mps else torch.float64)
