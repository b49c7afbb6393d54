"""Looking at a model, and drawing random numbers, without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from secateur.framework.network.convolution_faults import safe_convolutions
from secateur.framework.network.masks import PREFIX


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards modes, `requires_grad` and buffers are as before, whatever happens. Gradients
    may be taken in any memory format (see `convolution_faults`).

    Eval mode leaves the buffers of torch's own layers alone; those of other people's layers may count calls.
    Masks are not copied: no forward pass writes to them, and they are as large as the weights.
    """
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not name.startswith(PREFIX)
    ]
    try:
        model.eval()
        with safe_convolutions(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in wanted.items():
            parameter.requires_grad_(requires_grad)
        for module, name, buffer, version, copy in buffers:
            _restore(module, name, buffer, version, copy)


@contextmanager
def random_numbers_as_before() -> Iterator[None]:
    """What is drawn inside changes nothing of what is drawn afterwards: by torch on the CPU and on every GPU, by
    numpy and by Python."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@torch.no_grad()
def _restore(module: nn.Module, name: str, buffer: Tensor, version: int, copy: Tensor) -> None:
    module._buffers[name] = buffer
    # not all that write count it: batch norm in training mode does not on CPU
    if buffer._version != version or not _same(buffer, copy):
        buffer.copy_(copy)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are, also those that are no numbers; sparse ones and those without values count so."""
    if one.is_meta or one.layout is not torch.strided:
        return True
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards every module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Eval mode, and the user's gradients put aside; modes, buffers and gradients come back whatever happens."""
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    with preserved_state(model), torch.enable_grad():
        try:
            for parameter in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients.items():
                parameter.grad = gradient


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
