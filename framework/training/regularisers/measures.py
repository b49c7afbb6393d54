"""Measures of weight tensors with their gradients in closed form, for all tensors at once.

Every function takes a list of tensors, none of them empty, and returns the sum of the measure as a float64 scalar
and one gradient per tensor. Tensors of zeros have the measure 0 and the gradient 0, an element of the
subdifferential of the norms |w| and |w|_2, and for the ratios the choice that leaves a zero tensor at zero. For
measures of norms a tensor is divided by its L2 norm first, so that squares neither underflow nor overflow.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from secateur.utils.tensors import wide

#: L2 norms of groups below this share of the tensor's count as zero: their squares underflow in float32
LEAST_NORM = 1e-15


class Measured(NamedTuple):
    """The sum of a measure over tensors, a scalar, and its gradient with respect to each tensor."""

    value: Tensor
    gradients: list[Tensor]


#: tensors -> sum of a measure over them, with its gradients
Measure = Callable[[list[Tensor]], Measured]


class _Closed(torch.autograd.Function):
    """A scalar whose gradients are computed with it."""

    @staticmethod
    def forward(ctx: Any, measure: Measure, *weights: Tensor) -> Tensor:
        with torch.autocast(weights[0].device.type, enabled=False):
            value, gradients = measure([weight.detach() for weight in weights])
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*gradients)
        return value.to(weights[0].dtype if weights[0].dtype.itemsize >= 4 else torch.float32)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = list(ctx.saved_tensors)
        return None, *torch._foreach_mul(gradients, [upstream.to(one.dtype) for one in gradients])


def differentiable(measure: Measure, weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of a measure over tensors as a scalar of at least float32 that autograd can differentiate.

    It may be differentiated once; autocast does not change it.
    """
    value: Tensor = _Closed.apply(measure, *weights)
    return value


def unit(weights: list[Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return tensors divided by their L2 norms, the norms (float64), and 1 / norm per tensor; 0 for zeros."""
    norms = torch.stack(list(torch._foreach_norm(weights, 2, dtype=wide(weights[0].device))))
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    factors = as_list(inverse, weights)
    return list(torch._foreach_mul(weights, factors)), norms, factors


def as_list(values: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Return the entries of a vector as scalars in the dtypes of the tensors, at most their largest numbers."""
    dtype = weights[0].dtype
    return list(values.clamp(max=torch.finfo(dtype).max).to(dtype).unbind())


def l1(weights: list[Tensor]) -> Measured:
    """sum |w|, with the subgradient sign(w), which is 0 at 0."""
    value = torch.stack(list(torch._foreach_norm(weights, 1, dtype=wide(weights[0].device)))).sum()
    return Measured(value, list(torch._foreach_sign(weights)))


def transformed_l1(weights: list[Tensor]) -> Measured:
    """sum 2 |w| / (1 + |w|), with the gradient 2 sign(w) / (1 + |w|)^2, which is 0 at 0."""
    sizes = torch._foreach_abs(weights)
    shifted = torch._foreach_add(sizes, 1.0)
    shares = torch._foreach_div(sizes, shifted)
    value = 2 * torch.stack(list(torch._foreach_norm(shares, 1, dtype=wide(weights[0].device)))).sum()
    torch._foreach_mul_(shifted, shifted)
    gradients = list(torch._foreach_sign(weights))
    torch._foreach_mul_(gradients, 2.0)
    torch._foreach_div_(gradients, shifted)
    return Measured(value, gradients)


def hoyer(weights: list[Tensor], power: int = 1) -> Measured:
    """(sum |w| / |w|_2)^power per tensor, for power 1 or 2.

    With u = w / |w|_2 and A = sum |u| the gradient is power A^(power - 1) (sign(w) - A u) / |w|_2.
    """
    units, _, inverse = unit(weights)
    sums = torch.stack(list(torch._foreach_norm(units, 1, dtype=wide(weights[0].device))))
    torch._foreach_mul_(units, as_list(-sums, weights))
    torch._foreach_add_(units, list(torch._foreach_sign(weights)))
    torch._foreach_mul_(units, as_list(power * sums ** (power - 1), weights))
    torch._foreach_mul_(units, inverse)
    return Measured((sums**power).sum(), units)


def reciprocal(norms: Tensor) -> Tensor:
    """Return 1 / norm, and 0 for norms that count as zero: the subgradient 0 of the L2 norm of zeros."""
    return torch.where(norms > LEAST_NORM, 1 / norms, 0.0)
