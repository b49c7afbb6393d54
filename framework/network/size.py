"""Size of a network: the definitions of sparsity, multiply-adds (MACs) and CSR bytes.

Prunable weights are the weights of convolutions and linear layers, by type; biases and norms never count.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from secateur.framework.network.layers import output_dim, prunable_layers, prunable_weights, tensor_name
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import preserved_state


def dense_weights(model: nn.Module) -> dict[str, int]:
    """Return the number of entries of each prunable weight in the dense network."""
    dense = lineage_of(model).dense
    return {name: math.prod(dense.get(name, weight.shape)) for name, weight in prunable_weights(model).items()}


def weight_sparsity(model: nn.Module) -> float:
    """Return 1 - (non-zero prunable weights) / (prunable weights of the dense network).

    Cut and masked weights count equally.
    """
    total = sum(dense_weights(model).values())
    nonzero = sum(int(torch.count_nonzero(weight)) for weight in prunable_weights(model).values())
    return 1 - nonzero / total if total else 0.0


@dataclass(frozen=True)
class LayerSize:
    """Size of a prunable layer, at present and when dense. Channels masked to zero count as pruned.

    Attributes:
        name: Name of the layer; for a network that is a single layer, that of its class.
        output: Shape for one sample, (C, H, W) or (C,); empty for a layer that is not used, and if not measured.
        macs: Multiply-adds of one sample; 0 if not measured.
    """

    name: str
    kind: str
    channels: int
    dense_channels: int
    weights: int
    dense_weights: int
    parameters: int
    output: tuple[int, ...] = ()
    macs: int = 0

    @property
    def kept(self) -> float:
        """The share of the dense layer's weights that are neither zero nor cut."""
        return self.weights / max(1, self.dense_weights)


def layer_sizes(model: nn.Module) -> dict[str, LayerSize]:
    """Return the size of each prunable layer by module name; a weight shared by two layers counts for both."""
    dense, sizes = lineage_of(model).dense, {}
    for name, module in prunable_layers(model).items():
        weight, dim = module.weight, output_dim(module)
        assert isinstance(weight, Tensor)
        full = dense.get(tensor_name(name, "weight"), tuple(weight.shape))
        sizes[name] = LayerSize(
            name=name or type(model).__name__,
            kind=type(module).__name__,
            channels=int(weight.detach().movedim(dim, 0).flatten(1).any(dim=1).sum()),
            dense_channels=full[dim],
            weights=int(weight.count_nonzero()),
            dense_weights=math.prod(full),
            parameters=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        )
    return sizes


def count_macs(model: nn.Module, example_input: Tensor) -> tuple[int, dict[str, int]]:
    """Return the multiply-adds of one sample, of the whole network (attention included) and per prunable layer."""
    by_layer: dict[str, int] = {}
    counter = _Counter(model)

    def adding(name: str, sign: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            by_layer[name] = by_layer.get(name, 0) + sign * counter.total

        return hook

    layers = prunable_layers(model)  # the total after the layer minus that before it
    before, after = ([(module, adding(name, sign)) for name, module in layers.items()] for sign in (-1, 1))
    with hooked(after, before):
        counter.run(example_input)
    return counter.total, by_layer


class _Counter(TorchDispatchMode):
    """Counts the multiply-adds of each operation by torch's formulas, per contracted parameter.

    torch's `FlopCounterMode` has the same totals, also per layer, but none per parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._names = {p.untyped_storage()._cdata: name for name, p in reversed(list(model.named_parameters()))}
        self.of: dict[str, int] = {}
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            macs = formula(*args, **(kwargs or {}), out_val=out) // 2
            given = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 1)
            names = (self._names.get(tensor.untyped_storage()._cdata) for tensor in given)
            name = next((name for name in names if name is not None), None)
            self.total += macs
            if name is not None:
                self.of[name] = self.of.get(name, 0) + macs
        return out

    def run(self, example_input: Tensor) -> None:
        """Count the operations of the first sample."""
        with preserved_state(self._model), torch.no_grad(), _attention_in_parts(), self:
            self._model(example_input[:1])


def macs_by_tensor(model: nn.Module, example_input: Tensor) -> tuple[dict[str, int], int]:
    """Return the multiply-adds of one sample by parameter name, and the number of those between activations."""
    counter = _Counter(model)
    counter.run(example_input)
    return counter.of, counter.total - sum(counter.of.values())


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Compute attention by matrix products, since the counter has no formula for its fused kernels on the CPU."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def csr_bytes(model: nn.Module) -> int:
    """Return the size in bytes with prunable weights in CSR format and all other tensors dense.

    A CSR weight has its non-zero values, a 32-bit column index for each, and 32-bit row ends.
    """
    weights = prunable_weights(model)
    total = 0
    for name, tensor in model.state_dict().items():
        if name in weights:
            filled = int(torch.count_nonzero(tensor))
            total += filled * (tensor.element_size() + 4) + 4 * (len(tensor) + 1)
        else:
            total += tensor.numel() * tensor.element_size()
    return total
