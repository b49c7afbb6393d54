"""Measure size, sparsity and latency of a network, and rebuild the dense one that these are compared with."""

from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.latency import measure_latency
from secateur.framework.network.layers import check_network, prunable_layers
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.network.ordinary_tensors import ordinary, ordinary_mode
from secateur.framework.network.size import count_macs, csr_bytes, weight_sparsity
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import node_sparsity
from secateur.framework.pruning.channels.groups import check_example


@ordinary_mode()
def measure(model: nn.Module, example_input: Tensor, *, latency: bool = True) -> dict[str, Any]:
    """Measure the size, sparsity and latency of a network. The model is not changed.

    Args:
        model: The network, dense, masked or cut.
        example_input: A batch of inputs, one tensor with at least one sample in its first dimension, on the device
            of the model.
        latency: Whether to measure the latency, which takes seconds.

    Returns:
        A dictionary with the keys

        - `params`: number of parameters.
        - `macs`: multiply-adds of one sample.
        - `effective_macs`: the same, with those of layers with masked weights scaled by their density.
        - `bytes`: size of the file that `save_model` writes.
        - `csr_bytes`: size with the prunable weights in compressed sparse rows; None without masks.
        - `weight_sparsity`: share of the dense network's prunable weights that are zero or cut.
        - `node_sparsity`: share of the dense network's output units, without those of the output layers, that are
          zero or cut.
        - `latency_ms`: milliseconds by batch size, `{"1": ..., "64": ...}`; None if `latency` is False.

    Raises:
        UsageError: If `model` is not a network, or `example_input` is not a batch.

    Example:
        >>> import torch
        >>> from secateur import build, measure
        >>> model = build("models", "LeNet300", in_channels=1, num_classes=10, image_size=28)
        >>> numbers = measure(model, torch.zeros(1, 1, 28, 28), latency=False)
        >>> numbers["params"], numbers["macs"], numbers["node_sparsity"]
        (267410, 266200, 0.0)
    """
    from secateur.framework.storage.checkpoint import file_size

    check_network(model)
    check_example(example_input)
    example_input = ordinary(example_input)
    macs, by_layer = count_macs(model, example_input)
    weights: dict[str, Any] = {name: module.weight for name, module in prunable_layers(model).items()}
    zeros = {name: int((weight == 0).sum()) / max(1, weight.numel()) for name, weight in weights.items()}
    idle = sum(count * zeros[name] for name, count in by_layer.items())
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": macs,
        "effective_macs": round(macs - idle),
        "bytes": file_size(model),
        "csr_bytes": csr_bytes(model) if len(Masks(model)) else None,
        "weight_sparsity": weight_sparsity(model),
        "node_sparsity": node_sparsity(model, example_input),
        "latency_ms": measure_latency([model], example_input)[0] if latency else None,
    }


def dense_twin(model: nn.Module, example_input: Tensor) -> nn.Module:
    """Return the architecture before any pruning, with arbitrary weights: for measuring size and speed only."""
    lineage = lineage_of(model)
    try:
        with torch.device("meta"):  # skips the initialisation, which takes seconds for a large network
            twin: nn.Module = build("models", str(lineage.name), **lineage.options)
        twin = twin.to_empty(device=example_input.device)
    except (RuntimeError, NotImplementedError):  # a constructor that reads the values of its tensors
        twin = build("models", str(lineage.name), **lineage.options).to(example_input.device)
    for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        # Uninitialised memory can contain NaN, and denormal numbers, which are slow.
        if tensor.is_floating_point():
            tensor.data.fill_(1.0) if "running_var" in name else tensor.data.normal_(std=0.02)
        else:
            tensor.data.zero_()
    return twin
