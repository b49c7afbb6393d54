"""Replacement of tensors, and contexts that restore the state of a network and of the random number generators."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.framework.network.convolution_faults import safe_convolutions
from secateur.framework.network.layers import named_tensors
from secateur.framework.network.masks import PREFIX


def replace_tensors(model: nn.Module, new: Mapping[int, Tensor]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Replace parameters and buffers under all of their names; `new` maps the ids of the old ones to them.

    Return the dicts of the modules that had the old ones, with key and value.
    """
    found = places_of(model)
    places = [(holder, name, holder[name]) for key in new for holder, name in found.get(key, ())]
    for holder, name, old in places:
        holder[name] = new[id(old)]
    return places


def places_of(model: nn.Module) -> dict[int, list[tuple[dict[str, Any], str]]]:
    """Return where modules have each parameter and buffer, by its id: dicts of modules, with the key."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for holder in (vars(module)["_parameters"], vars(module)["_buffers"]):
            for name, tensor in holder.items():
                places.setdefault(id(tensor), []).append((holder, name))
    return places


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode, and restore modes, `requires_grad` and buffers on exit, also after an error.

    Gradients may be computed in any memory format (see `convolution_faults`). In eval mode torch's own layers do
    not change their buffers, but third-party layers may, for instance to count calls. Masks are not copied: no
    forward pass writes to them, and they are as large as the weights.
    """
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not name.startswith(PREFIX)
    ]
    try:
        with evaluating(model), safe_convolutions(model):
            yield
    finally:
        for parameter, requires_grad in trainable.items():
            parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for module, name, buffer, version, values in buffers:
                module._buffers[name] = buffer
                # not every write increases the version: batch norm in training mode does not on the CPU
                if buffer._version != version or not same_bits(buffer, values):
                    buffer.copy_(values)


@contextmanager
def random_numbers_as_before() -> Iterator[None]:
    """Restore the random number generators on exit: of torch on the CPU and every GPU, of numpy and of Python."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same bits; True for meta and sparse tensors."""
    if one.is_meta or one.layout is not torch.strided:
        return True
    if one.is_quantized:
        return torch.equal(one, other)
    return torch.equal(*(x.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8) for x in (one, other)))


@contextmanager
def replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Use these tensors in place of the model's parameters and buffers of these names, wherever they are shared.

    `torch.func.functional_call` does not restore them in a module that has two names.
    """
    named = named_tensors(model) if tensors else {}
    places = replace_tensors(model, {id(named[name]): tensor for name, tensor in tensors.items()})
    try:
        yield
    finally:
        for holder, key, old in places:
            holder[key] = old


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run the body with the models in eval mode, and restore the mode of every module on exit."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode with gradients enabled and without `.grad`, and restore the model's state on exit.

    Modes, `requires_grad`, buffers and gradients are restored, also after an error. Criterions compute scores
    inside.

    Args:
        model: The network; parameters must not be replaced in the body.

    Returns:
        A context manager.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import scoring
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.Dropout())
        >>> with scoring(model):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     print(model.training, model[0].weight.grad)
        False tensor([[1., 1.]])
        >>> model.training, model[0].weight.grad
        (True, None)
    """
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    with preserved_state(model), torch.enable_grad():
        try:
            for parameter in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
