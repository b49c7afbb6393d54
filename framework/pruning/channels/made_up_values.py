"""Random values for verification: with noise as weights and statistics, a wrong cut changes the output."""

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import MADE_UP, named_modules, tensor_name
from secateur.framework.network.lineage import KeptIndices
from secateur.framework.network.masks import PREFIX
from secateur.framework.pruning.channels.slicing import shrink

VERIFICATION_SEED = 20_240_229


#: length after which the noise repeats, which saves time: a prime number, so that no two rows are equal
PERIOD = 16_411


#: a parameter below this bound may close a branch
NEAR_ZERO = 1e-2


@torch.no_grad()
def made_up_values(
    model: nn.Module, masked: set[str], kept_indices: KeptIndices, whole: bool = False
) -> dict[int, Tensor]:
    """Return random values by tensor id, for built-in layers, masked tensors and parameters near zero.

    A freshly initialised network has zero shifts, unit scales and closed branches, and a pruned one has dead
    channels: with these values a wrong cut could pass verification.

    Args:
        model: The network, which is not changed.
        masked: Names of the tensors that have slices of the removed channels.
        kept_indices: Kept positions of each tensor; the values are zero elsewhere.
        whole: Whether removed positions have random values, too. The others are the same in both cases.
    """
    noise = _Noise()
    beyond = _Noise(VERIFICATION_SEED + 1) if whole else noise
    made: dict[int, Tensor] = {}
    for module_name, module in named_modules(model).items():
        known = isinstance(module, MADE_UP)
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not tensor.is_floating_point() or attribute.startswith(PREFIX):
                continue
            if id(tensor) in made:
                continue
            name = tensor_name(module_name, attribute)
            as_known, kind = known, attribute
            if not known and name not in masked:
                if not (isinstance(tensor, nn.Parameter) and _closes(tensor)):
                    continue
                as_known, kind = (True, "weight") if tensor.dim() < 2 else (False, attribute)
            if not isinstance(tensor, nn.Parameter):
                made[id(tensor)] = noise.like(tensor, kind, as_known)
                continue
            dims = kept_indices.get(name, {})
            small = noise.like(tensor, kind, as_known, dims)
            values = _spread(small, tensor.shape, dims)
            if whole and dims:
                kept = _spread(torch.ones_like(small), tensor.shape, dims) != 0
                values = torch.where(kept, values, beyond.like(tensor, kind, as_known))
            made[id(tensor)] = nn.Parameter(values, requires_grad=False)
    return made


def _closes(parameter: Tensor) -> bool:
    """Whether the parameter is near zero, as gates and layer scales are initially."""
    return parameter.numel() > 0 and float(parameter.abs().max()) < NEAR_ZERO


def _spread(small: Tensor, shape: Sequence[int], dims: Mapping[int, Tensor]) -> Tensor:
    """Return a tensor of that shape with `small` at the positions `dims`, and zeros elsewhere."""
    for dim, index in sorted(dims.items(), reverse=True):  # whole rows last: they have the most entries
        sizes = list(small.shape)
        sizes[dim] = shape[dim]
        small = small.new_zeros(sizes).index_copy_(dim, index.to(small.device), small)
    return small


class _Noise:
    """Reproducible normal random numbers: drawn once, and read from a random offset for each tensor."""

    def __init__(self, seed: int = VERIFICATION_SEED) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._once = torch.randn(PERIOD, generator=generator).repeat(2)
        self._shifts, self._scales = self._once * 0.3, self._once.tanh().mul_(0.5).add_(1)
        self._starts = random.Random(seed)

    def like(self, tensor: Tensor, name: str, known: bool, dims: Mapping[int, Tensor] | None = None) -> Tensor:
        """Return values for the kept positions `dims` of a tensor.

        `name` is the attribute; `known` is whether it belongs to a built-in layer, not to a third-party module.
        """
        dims = dims or {}
        shape = [len(dims[dim]) if dim in dims else size for dim, size in enumerate(tensor.shape)]
        start, size = self._starts.randrange(PERIOD), math.prod(shape)
        part = slice(start, start + min(size, PERIOD))
        if tensor.dim() > 1 and name.endswith("weight"):
            # fan-in of the whole tensor: the kept part then has a smaller output per layer, and nothing saturates
            values = self._once[part] * (2 / max(1, tensor.numel() // max(1, len(tensor)))) ** 0.5
        else:
            values = (self._scales if known and name in ("weight", "running_var") else self._shifts)[part].clone()
        if size > PERIOD:
            values = values.repeat(-(-size // PERIOD))[:size]
        values = values.view(shape).to(tensor)
        # the meaning of a third-party parameter (a scale, a table, a token) is unknown: stay near its value
        return values if known or name.endswith("weight") else values.add_(shrink(tensor.detach(), dims))
