"""A listener that reduces the L2 norm of every filter of the convolutions by a constant in each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import output_dim, prunable_layers
from secateur.framework.training.hooks import hookimpl

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer

#: smallest norm to divide by
LEAST_NORM = 1e-30


@torch.no_grad()
def shrink_filters(model: nn.Module, length: float) -> None:
    """Apply the proximal step of a group lasso: w_o := w_o * max(0, 1 - length / |w_o|) for every filter w_o.

    The L2 norm of each filter of each convolution decreases by `length`, down to 0; biases and norm layers are not
    changed.
    """
    seen: set[int] = set()
    for module in prunable_layers(model).values():
        weight = module.weight
        if isinstance(module, nn.Linear) or not isinstance(weight, Tensor) or id(weight) in seen:
            continue
        seen.add(id(weight))
        others = [dim for dim in range(weight.dim()) if dim != output_dim(module)]
        norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
        weight.mul_((1 - length / norms.clamp(min=LEAST_NORM)).clamp(min=0))


class GroupDecay:
    """Shrink the filters after each optimizer step by a constant that is independent of the learning rate.

    The constant is `--group_wd_coeff`.

    Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    def __init__(self, length: float) -> None:
        self.length = length

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Shrink the filters before any other listener reads the new weights."""
        shrink_filters(trainer.model, self.length)
