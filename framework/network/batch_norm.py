"""Re-estimation of the running statistics of batch norms."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.preserve import evaluating


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of all batch norms, the buffers themselves."""
    return [buffer for norm in _norms(model) for buffer in (norm.running_mean, norm.running_var)]


@torch.no_grad()
def measured_statistics(model: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """Return the running statistics estimated from the given batches only, with all other layers in eval mode.

    They are means over the batches of each batch's mean and variance, in the order of `running_statistics`. The
    model is not changed. Batches of a single sample are skipped.
    """
    norms = _norms(model)
    before = [(norm.momentum, norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = None
            norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()
            norm.num_batches_tracked = torch.zeros_like(norm.num_batches_tracked)
        with evaluating(model):
            for norm in norms:
                norm.training = True
            for inputs in batches:
                if len(inputs) > 1:
                    model(inputs)
        return [buffer.clone() for buffer in running_statistics(model)]
    finally:
        for norm, (momentum, mean, variance, count) in zip(norms, before, strict=True):
            norm.momentum, norm.running_mean, norm.running_var = momentum, mean, variance
            norm.num_batches_tracked = count


def _norms(model: nn.Module) -> list[Any]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kinds) and module.running_mean is not None]
