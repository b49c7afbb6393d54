"""Views of a layer's weight by input feature, scores of the network's inputs, and norms of the features."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import TRANSPOSED, prunable_layers, prunable_weights, tensor_name
from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gradients import in_double, mean_gradients
from secateur.utils.errors import UsageError


def input_columns(module: nn.Module, values: Tensor) -> Tensor:
    """Return the entries of a layer's weight by input: one row per input feature or input channel.

    Args:
        module: A linear layer, or a convolution (transposed, grouped and depthwise ones included).
        values: A tensor of the shape of the layer's weight, such as the weight itself or its gradient.

    Returns:
        The entries of `values` that multiply each input, `(inputs, entries)`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import input_columns
        >>> input_columns(nn.Linear(2, 3), torch.tensor([[1, 2], [3, 4], [5, 6]]))
        tensor([[1, 3, 5],
                [2, 4, 6]])
        >>> layer = nn.Conv2d(4, 8, kernel_size=3, groups=2)
        >>> input_columns(layer, layer.weight.detach()).shape
        torch.Size([4, 36])
    """
    conv_groups = int(getattr(module, "groups", 1))
    if isinstance(module, TRANSPOSED):  # (inputs, outputs / groups, ...)
        return values.flatten(1)
    per_group = values.reshape(conv_groups, values.shape[0] // conv_groups, values.shape[1], -1)
    return per_group.transpose(1, 2).flatten(2).flatten(0, 1)


def input_gates(
    model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str
) -> tuple[Tensor, float]:
    """Compute the gradient of the mean loss by a gate on each input of the layer, `(inputs,)`, and that loss."""
    name = tensor_name(layer, "weight")
    weight = prunable_weights(model)[name]
    with scoring(model):
        gradients, mean_loss = mean_gradients(model, batches, loss, {name: weight})
    return input_columns(model.get_submodule(layer), gradients[name] * weight.detach()).sum(1), mean_loss


def over_inputs(module: nn.Module, values: Tensor) -> Tensor:
    """Expand one value per input, `(inputs,)`, to the shape of the layer's weight."""
    weight: Any = module.weight
    values = values.to(weight.device)
    ones = [1] * (weight.dim() - 2)
    if isinstance(module, TRANSPOSED):
        return values.view(-1, 1, *ones).expand(weight.shape)
    conv_groups = int(getattr(module, "groups", 1))
    rows = values.view(conv_groups, -1).repeat_interleave(weight.shape[0] // conv_groups, 0)
    return rows.view(*rows.shape, *ones).expand(weight.shape)


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
    hooks = [(user, partial(_add_squares, squares, key)) for key, modules in users.items() for user in modules]
    with torch.no_grad(), hooked(hooks):
        if not [model(inputs) is None for inputs, _ in batches]:
            raise UsageError("the criterion needs data and got no batch")
    norms = {}
    for name, weight in prunable_weights(model).items():
        none = weight.new_zeros(len(input_columns(users[id(weight)][0], weight)))
        norms[name] = squares.get(id(weight), none).sqrt()
    return norms


def _add_squares(squares: dict[int, Tensor], key: int, module: Any, args: Any, kwargs: Any, _output: Any) -> None:
    """Forward hook: add the squares of each input feature."""
    given = (args[0] if args else kwargs["input"]).detach()
    axis = given.dim() + 1 - module.weight.dim()
    squares[key] = squares.get(key, 0) + in_double(given.movedim(axis, 0).flatten(1)).square().sum(1)
