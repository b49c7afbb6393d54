"""Layers that read removed channels: their observed inputs, and the effect of a constant input on the outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import TRANSPOSED, named_tensors, output_dim, prunable_layers
from secateur.framework.pruning.channels.groups import Groups


@dataclass
class Reader:
    """A layer that reads removed channels, with statistics of these inputs over all its calls."""

    name: str
    module: Any
    #: positions of removed channels along the input, and for each position the number of its channel
    positions: Tensor
    channels: Tensor
    #: minimum, maximum and mean of each position, `(3, positions)` for each call, and zeros like the last input
    seen: list[Tensor] = field(default_factory=list)
    blank: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's bias, or None if it is not a parameter of this module."""
        bias: nn.Parameter | None = self.module._parameters.get("bias")
        return bias

    def axis(self, tensor: Tensor) -> int:
        """Return the channel axis of an input or output."""
        return tensor.dim() + 1 - int(self.module.weight.dim())

    def look(self, _module: Any, args: Any, kwargs: Any, _output: Any) -> None:
        """Forward hook: record minimum, maximum and mean of the removed channels."""
        given = args[0] if args else kwargs["input"]
        axis = self.axis(given)
        values = given.detach().index_select(axis, self.positions.to(given.device)).movedim(axis, -1)
        values = values.reshape(-1, len(self.positions)).cpu().double()
        self.seen.append(torch.stack([values.amin(0), values.amax(0), values.mean(0)]))
        self.blank = torch.zeros_like(given)

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the constants along the whole input, whether each removed position is constant, and is not zero.

        The constants are float64, and zero at positions that are not removed or not constant.
        """
        lows, highs, means = torch.stack(self.seen).unbind(1)
        low, high = lows.amin(0), highs.amax(0)
        scale = torch.maximum(low.abs(), high.abs()).nan_to_num(0.0, posinf=0.0).max()
        constant = high - low <= torch.finfo(self.blank.dtype).eps ** 0.75 * scale  # False for NaN
        full = torch.zeros(self.blank.shape[self.axis(self.blank)], dtype=torch.float64)
        full[self.positions[constant]] = means.mean(0)[constant]
        return full, constant, (low != 0) | (high != 0)

    def change(self, constants: Tensor) -> Tensor:
        """Return the contribution of these constants to each output, float64."""
        weight = self.module.weight.detach()
        weight = weight.transpose(0, 1) if isinstance(self.module, TRANSPOSED) else weight
        inputs = constants.view(getattr(self.module, "groups", 1), -1)
        used = (inputs != 0).any(0).nonzero().flatten()
        if not len(used):
            return torch.zeros((), dtype=torch.float64)
        sums = weight.index_select(1, used.to(weight.device)).cpu().double()
        sums = sums.reshape(len(inputs), -1, len(used), sums[0, 0].numel()).sum(3)
        return torch.einsum("gop,gp->go", sums, inputs[:, used]).flatten()

    def adds(self, constants: Tensor, change: Tensor) -> bool:
        """Return whether the layer adds `change` to every output; a third-party subclass may compute otherwise."""
        shape = [-1 if axis == self.axis(self.blank) else 1 for axis in range(self.blank.dim())]
        before, after = self.module(self.blank), self.module(self.blank + constants.to(self.blank).view(shape))
        difference = (after - before).movedim(self.axis(after), -1).cpu().double()
        rounding = 8 * torch.finfo(after.dtype).eps * float(after.abs().max())
        return bool(((difference - change).abs() <= 0.01 * change.abs().max() + rounding).all())


def readers_of(model: nn.Module, removed: Mapping[str, Tensor], groups: Groups) -> list[Reader]:
    """Return the layers whose weight has removed channels along its inputs; a tied weight has its first name."""
    first = {id(tensor): name for name, tensor in reversed(named_tensors(model).items())}
    owned: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
    count = 0
    for name, off in removed.items():
        for part in groups[name].slices:
            index = part.index[off]
            channels = torch.arange(count, count + len(index)).repeat_interleave(index.shape[1])
            owned.setdefault((part.tensor, part.dim), []).append((index.flatten(), channels))
        count += int(off.sum())
    readers = []
    for name, module in prunable_layers(model).items():
        weight: Any = module.weight
        parts = owned.get((first.get(id(weight), ""), 1 - output_dim(module)))
        conv_groups = int(getattr(module, "groups", 1))
        if parts and (conv_groups == 1 or not isinstance(module, TRANSPOSED)):
            positions, channels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            starts = weight.shape[1] * torch.arange(conv_groups)[:, None]  # removed from each conv group
            readers.append(Reader(name, module, (positions + starts).flatten(), channels.repeat(conv_groups)))
    return readers
