"""Prunable layers, convolutions and linear layers, found by type, never by name; names of modules and tensors."""

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.framework.network.ordinary_tensors import check_memory
from secateur.utils.errors import UsageError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
#: number of names in a message
SHOWN = 3


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return module name -> module in registration order; a module used twice has its first name, as in torch."""
    return dict(model.named_modules())


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return module name -> prunable layer in registration order; a module used twice is listed once."""
    return {name: module for name, module in named_modules(model).items() if isinstance(module, PRUNABLE)}


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of all convolutions and linear layers: the parameters that sparsity is measured on.

    Args:
        model: The network. Weights that are not parameters, such as parametrised ones, are omitted.

    Returns:
        Parameter name -> weight, in registration order; a weight shared by two layers is listed once.

    Example:
        >>> from torch import nn
        >>> from secateur import prunable_weights
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
        >>> {name: tuple(weight.shape) for name, weight in prunable_weights(model).items()}
        {'0.weight': (8, 3, 3, 3), '3.weight': (2, 8)}
    """
    names: dict[nn.Parameter, str] = {}
    for name, module in prunable_layers(model).items():
        if isinstance(module.weight, nn.Parameter):
            names.setdefault(module.weight, tensor_name(name, "weight"))
    return {name: weight for weight, name in names.items()}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters, then all buffers, by `state_dict` name, in the order of the modules.

    A tied tensor is listed under each of its names.
    """
    parameters = dict[str, Tensor](model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def check_network(model: nn.Module) -> None:
    """Raise UsageError unless `model` is an `nn.Module` whose tensors have values and separate memory."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    tensors = named_tensors(model)
    for name, tensor in tensors.items():
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise UsageError(f"{type(model).__name__}: '{name}' is not initialised: run the network once first")
        if tensor.is_meta:
            raise UsageError(f"{type(model).__name__}: '{name}' is on the meta device and has no values")
    check_memory(type(model).__name__, tensors)


def tensor_name(module: str, attribute: str) -> str:
    """Return the `state_dict` name of a module's tensor; the root module has the name ''."""
    return f"{module}.{attribute}" if module else attribute


def shortened(names: Sequence[str]) -> str:
    """Return a few of the names, quoted, and the number of the others; the root module has the name ''."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) if name else "the model" for name in names[:SHOWN]) + more


def output_dim(module: nn.Module) -> int:
    """Return the dimension of the weight with the layer's output units; for an embedding these are the columns."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 1
    return 1 if isinstance(module, TRANSPOSED) and not is_depthwise(module) else 0


def unit_is_channel(module: nn.Module) -> bool:
    """Whether every unit along the weight's output dimension is a single output channel.

    A unit of a grouped transposed convolution is one channel of each conv group.
    """
    return not isinstance(module, TRANSPOSED) or module.groups == 1


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution filters each channel separately, so that its channels are those of its input.

    A transposed one may have several filters per channel; an attribute set by its adapter records this after a
    cut.
    """
    if isinstance(module, TRANSPOSED):
        return bool(vars(module).get("dense_depthwise", module.groups == module.in_channels > 1))
    return (
        isinstance(module, CONVOLUTIONS)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


#: built-in layers whose tensors verification may replace by random values, and which run on the meta device
MADE_UP = (*PRUNABLE, nn.modules.batchnorm._NormBase, nn.PReLU, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
