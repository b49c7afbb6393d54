"""Running statistics of batch norms, measured anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.preserve import evaluating


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of every batch norm: its buffers themselves, no copies."""
    return [buffer for norm in _norms(model) for buffer in (norm.running_mean, norm.running_var)]


@torch.no_grad()
def measured_statistics(model: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """What these would be if the batches (inputs) were all that the network in eval mode had ever seen.

    Mean over batches of each one's mean and variance, in the order of `running_statistics`. The model is not
    changed; batches of a single sample are left out.
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
