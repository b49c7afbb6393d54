"""Layers that read removed channels: what arrives there when the network runs, and what becomes of a constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.framework.network.layers import TRANSPOSED, named_tensors, output_dim, prunable_layers
from secateur.framework.network.outputs import hooked, output_tensors
from secateur.framework.pruning.channels.groups import Groups


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@dataclass
class Reader:
    """A layer that reads removed channels, and what arrived there in all its calls."""

    name: str
    module: Any
    #: where removed channels lie along its input, and the number of the channel that each position belongs to
    positions: Tensor
    channels: Tensor
    low: Tensor = field(default_factory=lambda: _number(torch.inf))
    high: Tensor = field(default_factory=lambda: _number(-torch.inf))
    means: list[Tensor] = field(default_factory=list)
    #: zeros of the shape of an input
    blank: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's bias, if it is a parameter of its own."""
        found: nn.Parameter | None = self.module._parameters.get("bias")
        return found

    def axis(self, tensor: Tensor) -> int:
        """Where the channels lie in an input or output."""
        return tensor.dim() + 1 - int(self.module.weight.dim())

    def look(self, _module: Any, args: Any, kwargs: Any, _output: Any) -> None:
        """Forward hook."""
        given = args[0] if args else kwargs["input"]
        axis = self.axis(given)
        seen = given.detach().index_select(axis, self.positions.to(given.device)).movedim(axis, -1)
        seen = seen.reshape(-1, len(self.positions)).cpu().double()
        self.low, self.high = torch.minimum(self.low, seen.amin(0)), torch.maximum(self.high, seen.amax(0))
        self.means.append(seen.mean(0))
        self.blank = torch.zeros_like(given)

    def constants(self) -> tuple[Tensor, Tensor]:
        """Float64 along the whole input, zero where nothing is removed; and for each position, is it constant?"""
        scale = torch.maximum(self.low.abs(), self.high.abs()).nan_to_num(0.0, posinf=0.0).max()
        constant = self.high - self.low <= torch.finfo(self.blank.dtype).eps ** 0.75 * scale  # not so for NaN
        full = torch.zeros(self.blank.shape[self.axis(self.blank)], dtype=torch.float64)
        full[self.positions[constant]] = torch.stack(self.means).mean(0)[constant]
        return full, constant

    def change(self, constants: Tensor) -> Tensor:
        """What they add to each output, float64."""
        weight = self.module.weight.detach()
        weight = weight.transpose(0, 1) if isinstance(self.module, TRANSPOSED) else weight
        each = constants.view(getattr(self.module, "groups", 1), -1)
        used = (each != 0).any(0).nonzero().flatten()
        sums = weight.index_select(1, used.to(weight.device)).cpu().double()
        sums = sums.reshape(len(each), -1, len(used), sums[0, 0].numel()).sum(3) if len(used) else sums
        return torch.einsum("gop,gp->go", sums, each[:, used]).flatten() if len(used) else _number(0.0)

    def adds(self, constants: Tensor, change: Tensor) -> bool:
        """Does the layer add that to every output? A stranger's subclass may do something else."""
        shape = [-1 if axis == self.axis(self.blank) else 1 for axis in range(self.blank.dim())]
        before, after = self.module(self.blank), self.module(self.blank + constants.to(self.blank).view(shape))
        found = (after - before).movedim(self.axis(after), -1).cpu().double()
        rounding = 8 * torch.finfo(after.dtype).eps * float(after.abs().max())
        return bool(((found - change).abs() <= 0.01 * change.abs().max() + rounding).all())


def readers_of(model: nn.Module, removed: Mapping[str, Tensor], groups: Groups) -> list[Reader]:
    """Layers whose weight has removed channels along its inputs; tied weights are known by their first name."""
    first = {id(one): name for name, one in reversed(named_tensors(model).items())}
    owned: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
    count = 0
    for name, off in removed.items():
        for part in groups[name].slices:
            index = part.index[off]
            channels = torch.arange(count, count + len(index)).repeat_interleave(index.shape[1])
            owned.setdefault((part.tensor, part.dim), []).append((index.flatten(), channels))
        count += int(off.sum())
    found = []
    for name, module in prunable_layers(model).items():
        weight: Any = module.weight
        parts = owned.get((first.get(id(weight), ""), 1 - output_dim(module)))
        conv_groups = int(getattr(module, "groups", 1))
        if parts and (conv_groups == 1 or not isinstance(module, TRANSPOSED)):
            positions, channels = (torch.cat(one) for one in zip(*parts, strict=True))
            starts = weight.shape[1] * torch.arange(conv_groups)[:, None]  # the channel goes from each conv group
            found.append(Reader(name, module, (positions + starts).flatten(), channels.repeat(conv_groups)))
    return found


def sole_norms(model: nn.Module, readers: list[Reader], run: Callable[[], Any]) -> dict[str, str]:
    """Reader -> the batch norm that alone takes its outputs and takes nothing else, when `run` runs the model."""
    means = {
        id(module.running_mean): name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    outputs: dict[str, list[Tensor]] = {reader.name: [] for reader in readers}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _args, _kwargs, output: outputs[name].append(output)

    with hooked((reader.module, keep(reader.name)) for reader in readers), _Uses() as uses:
        returned = {id(tensor) for tensor in output_tensors(run())}
    found = {}
    for reader in readers:
        own = outputs[reader.name]
        taken = [uses.of.get(id(one), []) for one in own]
        if any(len(each) != 1 or reader.axis(one) != 1 for one, each in zip(own, taken, strict=True)):
            continue
        into = {id(tensor) for each in taken for tensor in each[0] if id(tensor) in means}
        if len(into) == 1 and not any(id(one) in returned for one in own):
            mean = into.pop()
            if len(uses.of[mean]) == len(own):
                found[reader.name] = means[mean]
    return found


class _Uses(TorchDispatchMode):
    """The tensors that each operation takes, by the id of every one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, list[list[Tensor]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in given:
            self.of.setdefault(id(tensor), []).append(given)
        return func(*args, **(kwargs or {}))
