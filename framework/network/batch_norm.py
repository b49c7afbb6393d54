"""Re-estimation of the running statistics of batch norms."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.copies import twin_of


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of all batch norms, the buffers themselves."""
    return [buffer for norm in _norms(model) for buffer in (norm.running_mean, norm.running_var)]


@torch.no_grad()
def measured_statistics(model: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """Return the running statistics estimated from the given batches only, with all other layers in eval mode.

    They are means over the batches of each batch's mean and variance, in the order of `running_statistics`. The
    model is not changed. Batches of a single sample are skipped.
    """
    twin = twin_of(model).eval()
    for norm in _norms(twin):
        norm._buffers = {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    for inputs in batches:
        if len(inputs) > 1:
            twin(inputs)
    return running_statistics(twin)


def _norms(model: nn.Module) -> list[Any]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kinds) and module.running_mean is not None]
