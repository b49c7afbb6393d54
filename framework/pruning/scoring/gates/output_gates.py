"""Gradients of channel gates from passes that compute no weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import output_dim, tensor_name, unit_is_channel
from secateur.framework.network.outputs import output_tensors
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.scoring.channel_sums import add_units, per_unit, producer_parameters
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gradients import add_gradients
from secateur.utils.errors import UsageError

#: relative tolerance for the agreement of two ways to compute a gradient
SAME = 1e-3


def gate_gradients(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Mapping[str, ChannelGroup]
) -> tuple[dict[str, Tensor], float]:
    """Compute the gradient of the mean loss with respect to a gate c = 1 on each channel, and that loss.

    The gate multiplies the output z of a producer, before the norm, so that dL/dc = sum z * dL/dz over samples and
    positions, which equals sum w * g + b * g_b over the channel's row and bias. The first form needs no weight
    gradients, which saves a third of a pass; the second is used if the first is not available, which is tested on
    one sample. Several producers of one channel are summed. Call it inside `scoring`.
    """
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise UsageError("the criterion needs data and got no batch")
    parameters = producer_parameters(model, groups)
    captured = _heard(model, first[0][:1], parameters)
    _freeze(model)
    uncaptured = {
        name: tensor
        for name, tensor in parameters.items()
        if tensor_name(name.rpartition(".")[0], "weight") not in captured
    }
    for tensor in uncaptured.values():
        tensor.requires_grad_(True)
    with _gates_attached(model, captured) as units:
        samples, mean_loss = add_gradients(model, chain([first], remaining), loss, None)
    units |= _from_gradients(model, uncaptured)
    return {name: gate.div_(samples) for name, gate in add_units(groups, units).items()}, mean_loss


def _heard(model: nn.Module, sample: Tensor, parameters: Mapping[str, nn.Parameter]) -> set[str]:
    """Return the producers' weights whose gate gradient can be computed from the output.

    It cannot if the weight is shared or the output is modified in place.
    """
    _freeze(model)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    weights = {
        name
        for name in parameters
        if name.rpartition(".")[2] == "weight" and unit_is_channel(model.get_submodule(name.rpartition(".")[0]))
    }
    with _gates_attached(model, weights) as units:
        outputs = [output for output in output_tensors(model(sample)) if output.requires_grad]
        if outputs:
            torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    expected = _from_gradients(model, parameters)
    for parameter in model.parameters():
        parameter.grad = None
    return {name for name, unit in units.items() if _agree(unit, expected, name)}


def _agree(found: Tensor, expected: Mapping[str, Tensor], weight: str) -> bool:
    sums, bias = expected[weight], expected.get(tensor_name(weight.rpartition(".")[0], "bias"))
    if bias is not None and bias.shape == sums.shape:
        sums = sums + bias
    if found.shape != sums.shape:
        return False
    return bool(torch.linalg.vector_norm(found - sums) <= SAME * torch.linalg.vector_norm(sums))


def _from_gradients(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Sum parameter * gradient over each output unit of each weight and bias."""
    units = {}
    for name, parameter in parameters.items():
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        dim = output_dim(model.get_submodule(name.rpartition(".")[0]))
        units[name] = per_unit(parameter.detach(), gradient, dim)
    return units


@contextmanager
def _gates_attached(model: nn.Module, weights: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Context manager in which backward passes accumulate sum z * dL/dz for each output unit of the layers."""
    units: dict[str, Tensor] = {}
    handles = []
    try:
        for name in weights:
            module = model.get_submodule(name.rpartition(".")[0])
            handles.append(module.register_forward_hook(_listener(name, units)))
        yield units
    finally:
        for handle in handles:
            handle.remove()


def _listener(name: str, units: dict[str, Tensor]) -> Callable[..., Any]:
    def listen(module: Any, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return None
        if not output.requires_grad:  # no earlier tensor requires a gradient
            output = output.requires_grad_().clone()  # a leaf must not be modified in place
        channel = output.dim() - 1 - (module.weight.dim() - 2)
        others = [dim for dim in range(output.dim()) if dim != channel]
        units.setdefault(name, output.new_zeros(output.shape[channel]))
        kept = [output.detach()]

        def add(gradient: Tensor) -> None:
            units[name] += (kept.pop() * gradient).sum(others)  # popped: the hook lives as long as the loss

        output.register_hook(add)
        return output

    return listen


def _freeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
