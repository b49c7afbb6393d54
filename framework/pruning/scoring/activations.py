"""Norms of the layers' inputs, and the synaptic flow of a network with positive parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.framework.network.layers import prunable_layers, prunable_weights
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.outputs import hooked, output_tensors
from secateur.framework.pruning.scoring.criterion import Batch
from secateur.utils.errors import UsageError


def input_norms(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute the L2 norm of each input feature over samples and positions: `(inputs,)` per prunable weight.

    The norms of a layer that is never called are zero. Call it inside `scoring`. Raises UsageError without a
    batch, and for layers inside nn.MultiheadAttention, which uses their weights without calling them.
    """
    squares: dict[int, Tensor] = {}
    users: dict[int, list[Any]] = {}
    for name, module in prunable_layers(model).items():
        users.setdefault(id(module.weight), []).append(module)
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention):
            raise UsageError(f"the input of '{name}' inside nn.MultiheadAttention cannot be observed")
    hooks = [(user, _adder(squares, key)) for key, modules in users.items() for user in modules]
    with torch.no_grad(), hooked(hooks):
        if not [model(inputs) is None for inputs, _ in batches]:
            raise UsageError("the criterion needs data and got no batch")
    norms = {}
    for name, weight in prunable_weights(model).items():
        none = torch.zeros(_inputs(users[id(weight)][0]), device=weight.device)
        norms[name] = squares.get(id(weight), none).sqrt()
    return norms


def _inputs(module: Any) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def _adder(squares: dict[int, Tensor], key: int) -> Callable[..., None]:
    """Return a forward hook that accumulates the squares of each input feature."""

    def add(module: Any, args: Any, kwargs: Any, _output: Any) -> None:
        given = (args[0] if args else kwargs["input"]).detach()
        axis = given.dim() + 1 - module.weight.dim()
        squares[key] = squares.get(key, 0) + _precise(given.movedim(axis, 0).flatten(1)).square().sum(1)

    return add


def synaptic_flow(model: nn.Module, example_input: Tensor) -> dict[str, Tensor]:
    """Compute |w * dR/dw| of every prunable weight in float64; R is the sum of the outputs for an input of ones.

    All parameters and buffers are replaced by their absolute values, and the running statistics of batch norms by
    mean 0 and variance 1, as in a new network. The model is not changed; call it inside `scoring`.
    """
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if PREFIX not in n)]
    tensors = {name: _precise(values.detach().abs()) for name, values in named if values.is_floating_point()}
    for name in tensors:
        if name.endswith("running_mean"):
            tensors[name] = torch.zeros_like(tensors[name])
        elif name.endswith("running_var"):
            tensors[name] = torch.ones_like(tensors[name])
    weights = {name: tensors[name].requires_grad_() for name in prunable_weights(model)}
    ones = torch.ones_like(example_input[:1])
    ones = _precise(ones) if ones.is_floating_point() else ones
    outputs = output_tensors(functional_call(model, tensors, (ones,)))
    flow = torch.stack([output.sum() for output in outputs]).sum()
    gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True, materialize_grads=True)
    return {
        name: (weight.detach() * gradient).abs()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.float32 if values.is_mps else torch.float64)
