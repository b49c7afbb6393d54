"""Random values for verification: with noise as weights and statistics, a wrong cut changes the output."""

import random

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import MADE_UP, tensor_name
from secateur.framework.network.lineage import KeptIndices
from secateur.framework.network.masks import PREFIX

VERIFICATION_SEED = 20_240_229
#: length after which the noise repeats, which saves time: a prime number, so that no two rows are equal
PERIOD = 16_411
#: a parameter below this bound may close a branch, as gates and layer scales do initially
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
        whole: Whether removed positions have random values, too.
    """
    noise = _Noise()
    made: dict[int, Tensor] = {}
    for module_name, module in model.named_modules():
        known = isinstance(module, MADE_UP)
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or id(tensor) in made or attribute.startswith(PREFIX):
                continue
            if not tensor.is_floating_point():
                continue
            name = tensor_name(module_name, attribute)
            as_known, kind = known, attribute
            if not known and name not in masked:
                if not (isinstance(tensor, nn.Parameter) and tensor.numel() and tensor.abs().max() < NEAR_ZERO):
                    continue
                as_known, kind = (True, "weight") if tensor.dim() < 2 else (False, attribute)
            made[id(tensor)] = values = noise.like(tensor, kind, as_known)
            if isinstance(tensor, nn.Parameter):
                for dim, index in kept_indices.get(name, {}).items() if not whole else ():
                    removed = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill_(0, index, False)
                    values.index_fill_(dim, removed.nonzero().flatten().to(values.device), 0)
                made[id(tensor)] = nn.Parameter(values, requires_grad=False)
    return made


class _Noise:
    """Reproducible normal random numbers: drawn once, and read from a random offset for each tensor."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(VERIFICATION_SEED)
        self._once = torch.randn(PERIOD, generator=generator).repeat(2)
        self._shifts, self._scales = self._once * 0.3, self._once.tanh().mul_(0.5).add_(1)
        self._starts = random.Random(VERIFICATION_SEED)

    def like(self, tensor: Tensor, name: str, known: bool) -> Tensor:
        """Return values for a tensor.

        `name` is the attribute; `known` is whether it belongs to a built-in layer, not to a third-party module.
        """
        start, size = self._starts.randrange(PERIOD), tensor.numel()
        part = slice(start, start + min(size, PERIOD))
        if tensor.dim() > 1 and name.endswith("weight"):
            # the fan-in before the cut: a cut layer then has a smaller output, and nothing saturates
            values = self._once[part] * (2 / max(1, size // max(1, len(tensor)))) ** 0.5
        else:
            values = (self._scales if known and name in ("weight", "running_var") else self._shifts)[part].clone()
        if size > PERIOD:
            once, rest = values, size % PERIOD
            values = once.new_empty(size)  # of `repeat` the memory of a last, partial period would remain
            values[: size - rest].view(-1, PERIOD).copy_(once)
            values[size - rest :].copy_(once[:rest])
        values = values.view(tensor.shape).to(tensor)
        # the meaning of a third-party parameter (a scale, a table, a token) is unknown: stay near its value
        return values if known or name.endswith("weight") else values.add_(tensor.detach())
