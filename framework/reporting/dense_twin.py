"""Rebuild the dense network that a pruned network was made from."""

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.plugins.registry import build


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
