"""Windowed attention of torchvision's Swin, Swin V2 and MaxViT with a width that its tensors define.

The parameters, attributes and results are those of the originals. The module is imported when one of them is cut.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from secateur.framework.pruning.adapters.base import by_head
from secateur.utils.vision import torchvision

_models = torchvision().models
_Swin: Any = _models.swin_transformer.ShiftedWindowAttention
_SwinV2: Any = _models.swin_transformer.ShiftedWindowAttentionV2
_MaxVit: Any = _models.maxvit.RelativePositionalMultiHeadAttention
#: score between positions of different regions after a shift
FAR = -100.0


class SlimMaxVitAttention(_MaxVit):
    """`RelativePositionalMultiHeadAttention` whose inner width differs from its input's."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, windows, positions, channels) to the same shape."""
        if self.n_heads == 0:
            return self.merge(x.new_zeros(*x.shape[:-1], 0))  # type: ignore[no-any-return]
        q, k, v = (by_head(part, self.n_heads, self.head_dim) for part in self.to_qkv(x).chunk(3, dim=-1))
        scores = q @ (k * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
        mixed = functional.softmax(scores, dim=-1) @ v
        out: Tensor = self.merge(mixed.transpose(2, 3).flatten(3))
        return out


class _Windows:
    """Forward pass of both versions of Swin's attention."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Map (batch, height, width, channels) to the same shape."""
        if self.num_heads == 0:
            return functional.linear(x.new_zeros(*x.shape[:-1], 0), self.proj.weight, self.proj.bias)
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        padded = functional.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        across, down = padded.shape[2] // columns, padded.shape[1] // rows
        shift = [
            0 if window >= size else step
            for window, size, step in zip(self.window_size, padded.shape[1:3], self.shift_size, strict=True)
        ]
        if any(shift):
            padded = padded.roll((-shift[0], -shift[1]), dims=(1, 2))
        windows = padded.unflatten(2, (across, columns)).unflatten(1, (down, rows)).transpose(2, 3)
        mask = _regions(padded, self.window_size, shift) if any(shift) else None
        out = self._attend(windows.flatten(3, 4).flatten(0, 2), mask)
        out = out.unflatten(0, (-1, down, across)).unflatten(3, (rows, columns)).transpose(2, 3)
        out = out.flatten(3, 4).flatten(1, 2)
        if any(shift):
            out = out.roll((shift[0], shift[1]), dims=(1, 2))
        return out[:, :height, :width].contiguous()

    def _attend(self: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each window: (windows, positions, channels)."""
        projected = functional.linear(x, self.qkv.weight, self._qkv_bias())
        q, k, v = (by_head(part, self.num_heads, self.head_dim) for part in projected.chunk(3, dim=-1))
        scores = self._scores(q, k) + self.get_relative_position_bias()
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1)).flatten(0, 1)
        weights = functional.dropout(functional.softmax(scores, dim=-1), self.attention_dropout, self.training)
        out = functional.linear((weights @ v).transpose(1, 2).flatten(2), self.proj.weight, self.proj.bias)
        return functional.dropout(out, self.dropout, self.training)

    def _qkv_bias(self: Any) -> Tensor | None:
        bias: Tensor | None = self.qkv.bias
        return bias

    def _scores(self: Any, q: Tensor, k: Tensor) -> Tensor:
        scores: Tensor = (q * self.scale) @ k.transpose(-2, -1)
        return scores


class SlimWindowAttention(_Windows, _Swin):
    """`ShiftedWindowAttention` whose inner width differs from its input's."""


class SlimWindowAttentionV2(_Windows, _SwinV2):
    """`ShiftedWindowAttentionV2` whose inner width differs from its input's: cosine scores, keys without bias."""

    def _qkv_bias(self: Any) -> Tensor | None:
        bias: Tensor | None = self.qkv.bias
        if bias is None:
            return None
        q, k, v = bias.chunk(3)
        return torch.cat([q, torch.zeros_like(k), v])

    def _scores(self: Any, q: Tensor, k: Tensor) -> Tensor:
        cosine = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
        scores: Tensor = cosine * self.logit_scale.clamp(max=math.log(100.0)).exp()
        return scores


def _regions(padded: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """Return (windows, positions, positions): `FAR` between regions that the shift made adjacent, else 0."""
    ids = []
    for size, length, step in zip(padded.shape[1:3], window, shift, strict=True):
        place = torch.arange(size, device=padded.device)
        late = (place >= size - length).long() + (place >= size - step) if step else torch.zeros_like(place)
        ids.append(late.unflatten(0, (-1, length)))
    rows, columns = ids
    region = 3 * rows[:, None, :, None] + columns[None, :, None, :]
    region = region.flatten(2).flatten(0, 1)
    apart = region[:, :, None] != region[:, None]
    return torch.zeros_like(apart, dtype=padded.dtype).masked_fill_(apart, FAR)
