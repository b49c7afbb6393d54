"""Gradients of channel gates per batch and per sample, without a change of the network."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from secateur.framework.network.outputs import output_tensors
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gates.gated import Application, gated
from secateur.framework.pruning.scoring.gates.sites import GateSites, Place
from secateur.framework.pruning.scoring.gradients import freeze, mean_of, peek
from secateur.utils.errors import UsageError

#: relative tolerance for a gradient that is zero
ZERO = 1e-3
UNREACHED = "the loss does not depend on the channels to be scored: there is no gradient"


def gate_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: LossFunction,
    groups: Groups,
    place: Place = "norm",
    per_sample: bool = False,
) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """Yield the size of each batch, its mean loss L, and dL/dz of every channel's gate z = 1; use it in `scoring`.

    The gate multiplies the output of the batch norm after a producer, so that dL/dz is scale * dL/dscale + shift *
    dL/dshift; without a norm it multiplies the producer's output: sum w * dL/dw + b * dL/db. The gradients of
    several producers of one channel are summed: `(channels,)` per group. With `per_sample` the part of every
    sample is separate: `(samples, channels)`.
    """
    sample, batches = peek(batches)
    sites = GateSites.find(model, groups, sample[:1], place)
    freeze(model)
    together = per_sample and samples_apart(sites, sample[:2])
    for inputs, targets in batches:
        if per_sample and not together:
            value, gradients = _one_by_one(sites, inputs, targets, loss)
        else:
            value, gradients = _gradients(sites, inputs, targets, loss, len(inputs) if together else None)
        yield len(inputs), value, gradients


def mean_gates(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups, place: Place
) -> tuple[dict[str, Tensor], float]:
    """Compute the gradient of the mean loss over all samples with respect to every gate, and that loss."""
    parts = gate_gradients(model, batches, loss, groups, place)
    means = mean_of((size, {**gradients, "": value.double()}) for size, value, gradients in parts)
    return means, float(means.pop(""))


def _gradients(
    sites: GateSites, inputs: Tensor, targets: Tensor, loss: LossFunction, samples: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch, and its gradient by each gate."""
    with gated(sites, samples) as gates:
        value = loss(sites.model(inputs), targets)
    if not value.requires_grad:
        raise UsageError(UNREACHED)
    gradients = torch.autograd.grad(value, list(gates.values()), materialize_grads=True)
    return value.detach(), dict(zip(gates, gradients, strict=True))


def samples_apart(sites: GateSites, sample: Tensor) -> bool:
    """Whether every sample can have gates of its own: whether a loss of the first depends on its gates only.

    It cannot if a gate multiplies a parameter, or an output without sample dimension. `sample` has one or two
    samples.
    """
    if not all(map(sites.on_outputs, sites.groups)):
        return False
    calls: list[Application] = []
    with gated(sites, calls=calls):
        outputs = [output for output in output_tensors(sites.model(sample)) if output.requires_grad]
    if not all(sites.axis(call.weight, call.before) > 0 and len(call.before) == len(sample) for call in calls):
        return False
    if not outputs:
        return True
    value = torch.stack([output[:1].float().square().mean() for output in outputs]).sum()
    slopes = torch.autograd.grad(value, [call.after for call in calls], allow_unused=True)
    terms = [call.before * (0 if slope is None else slope) for call, slope in zip(calls, slopes, strict=True)]
    rows = torch.stack([term.flatten(1).sum(1) for term in terms])
    return bool(torch.linalg.vector_norm(rows[:, 1:]) <= ZERO * torch.linalg.vector_norm(rows))


def _one_by_one(
    sites: GateSites, inputs: Tensor, targets: Tensor, loss: LossFunction
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one pass per sample, backward from the gradient of the batch's loss at that sample's outputs."""
    with torch.no_grad():
        outputs = sites.model(inputs)
    outputs = outputs.detach().requires_grad_()
    value = loss(outputs, targets)
    (slopes,) = torch.autograd.grad(value, outputs)
    samples = [
        _gradients(sites, image, slope, lambda output, factors: (output * factors).sum())[1]
        for image, slope in zip(inputs.split(1), slopes.split(1), strict=True)
    ]
    return value.detach(), {name: torch.stack([sample[name] for sample in samples]) for name in sites.groups}
