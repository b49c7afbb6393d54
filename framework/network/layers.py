"""Prunable layers, convolutions and linear layers, found by type, never by name; names of modules and tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.utils.errors import UsageError
from secateur.utils.tensors import dtype_name

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
#: number of names in a message
SHOWN = 3


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return module name -> prunable layer in registration order; a module used twice is listed once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}


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
    """Raise UsageError unless `model` is an `nn.Module` whose tensors have values, arithmetic and separate memory.

    An in-place write to overlapping memory changes other entries of the parameter, or another parameter.
    """
    owner = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, got {owner}")
    tensors = named_tensors(model)
    by_storage: dict[int, dict[int, str]] = {}
    for name, tensor in tensors.items():
        fault = _fault(tensor)
        if fault:
            raise UsageError(f"{owner}: '{name}' {fault}")
        if isinstance(tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.numel() > 0:
            by_storage.setdefault(tensor.untyped_storage()._cdata, {}).setdefault(id(tensor), name)
    for names in by_storage.values():
        shared = list(names.values())
        if len(shared) > 1 and _overlap([tensors[name] for name in shared]):
            raise UsageError(
                f"{owner}: {' and '.join(map(repr, shared[:2]))} share memory without being one parameter: assign "
                "the same nn.Parameter to both, or a copy to one of them"
            )


def _fault(tensor: Tensor) -> str:
    """Return why a tensor cannot be scored, or a parameter not be changed in place; "" if it can."""
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        return "is not initialised: run the network once first"
    if tensor.is_meta:
        return "is on the meta device and has no values"
    if tensor.is_inference():
        return (
            "was created in torch.inference_mode, and autograd cannot use it: create the network outside, or "
            "deep-copy it there"
        )
    if not isinstance(tensor, nn.Parameter):
        return ""
    if tensor.is_floating_point() and tensor.element_size() < 2:
        return (
            f"is {dtype_name(tensor.dtype)}, which has no arithmetic: convert the network to float32, float64, "
            "bfloat16 or float16"
        )
    if tensor.layout is torch.strided and torch._debug_has_internal_overlap(tensor) and _overlap([tensor]):
        return (
            f"has several entries that share memory (strides {tensor.stride()}): assign a copy, such as "
            "nn.Parameter(tensor.clone())"
        )
    return ""


def _overlap(tensors: list[Tensor]) -> bool:
    """Whether two entries of these tensors, which share a storage, have the same memory address."""
    size = max(tensor.element_size() for tensor in tensors)
    if any(tensor.element_size() != size for tensor in tensors):
        return True  # a view with another dtype
    taken = torch.zeros(tensors[0].untyped_storage().nbytes() // size, dtype=torch.bool)
    positions = torch.arange(len(taken))
    for tensor in tensors:
        # by an index, since torch refuses a write to overlapping entries
        taken[positions.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).reshape(-1)] = True
    return int(taken.sum()) < sum(tensor.numel() for tensor in tensors)


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
