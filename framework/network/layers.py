"""Which layers have prunable weights: convolutions and linear layers, found by type, never by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from secateur.framework.network.ordinary_tensors import check_memory
from secateur.utils.errors import UsageError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every place of a module, in registration order: one that is used twice comes under both names. Torch's own
    iterators take several times as long in a deep network."""
    pending: list[tuple[str, nn.Module]] = [("", model)]
    while pending:
        name, module = pending.pop()
        yield name, module
        if module._modules:
            prefix = f"{name}." if name else ""
            children = [(prefix + own, child) for own, child in module._modules.items() if child is not None]
            pending += reversed(children)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Module name to module in registration order, a module used twice under its first name, as torch has it."""
    first: dict[nn.Module, str] = {}
    for name, module in _walk(model):
        first.setdefault(module, name)
    return {name: module for module, name in first.items()}


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Module name to module, in registration order; a module used twice is listed once."""
    return {name: module for name, module in named_modules(model).items() if isinstance(module, PRUNABLE)}


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameter name to weight of every prunable layer; a weight shared by two layers is listed once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in prunable_layers(model).items():
        weight = module.weight
        if isinstance(weight, nn.Parameter) and id(weight) not in seen:
            seen.add(id(weight))
            found[tensor_name(name, "weight")] = weight
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, then all buffers, by `state_dict` name, in the order of the modules; a tensor that is tied
    is there under each of its names."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for name, module in _walk(model):
        prefix = f"{name}." if name else ""
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                parameters[prefix + attribute] = parameter
        for attribute, buffer in module._buffers.items():
            if buffer is not None:
                buffers[prefix + attribute] = buffer
    return parameters | buffers


def check_network(model: nn.Module) -> None:
    """Raise UsageError for what is not a network, or has a tensor without values or memory of its own."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a torch.nn.Module, got {type(model).__name__}")
    tensors = named_tensors(model)
    for name, tensor in tensors.items():
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise UsageError(f"{type(model).__name__}: '{name}' is not initialised: run the network once first")
        if tensor.is_meta:
            raise UsageError(f"{type(model).__name__}: '{name}' is on the meta device, it has no values")
    check_memory(type(model).__name__, tensors)


def tensor_name(module: str, attribute: str) -> str:
    """`state_dict` name of a module's tensor; the root module has the name ''."""
    return f"{module}.{attribute}" if module else attribute


def output_dim(module: nn.Module) -> int:
    """Dimension of the weight along which the layer's output units lie; a table's are its columns."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 1
    return 1 if isinstance(module, TRANSPOSED) and not is_depthwise(module) else 0


def unit_is_channel(module: nn.Module) -> bool:
    """Whether every unit along the weight's output dimension is one channel of the layer's output; those of a
    grouped transposed convolution are one of each conv group."""
    return not isinstance(module, TRANSPOSED) or module.groups == 1


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution filters each channel by itself, so that its channels follow their producer.

    A transposed one may have several filters for each; that it is of this kind it still knows after a cut.
    """
    if isinstance(module, TRANSPOSED):
        return bool(vars(module).get("dense_depthwise", module.groups == module.in_channels > 1))
    return (
        isinstance(module, CONVOLUTIONS)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


MADE_UP = (*PRUNABLE, nn.modules.batchnorm._NormBase, nn.PReLU, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
