"""The dense network that a pruned one came from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.plugins.registry import build


def dense_twin(model: nn.Module, example_input: Tensor) -> nn.Module:
    """The architecture before any pruning, with arbitrary weights: for sizes and speed only."""
    lineage = lineage_of(model)
    try:
        with torch.device("meta"):  # weights are not drawn: for a large network that takes seconds
            twin: nn.Module = build("models", str(lineage.name), **lineage.options)
        twin = twin.to_empty(device=example_input.device)
    except (RuntimeError, NotImplementedError):  # a constructor that reads the values of its tensors
        twin = build("models", str(lineage.name), **lineage.options).to(example_input.device)
    for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        # Plain numbers: uninitialised memory may hold denormals, which are slow, and NaN.
        if tensor.is_floating_point():
            tensor.data.fill_(1.0) if "running_var" in name else tensor.data.normal_(std=0.02)
        else:
            tensor.data.zero_()
    return twin
