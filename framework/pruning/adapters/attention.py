"""Attention modules whose inner width, number of heads and size of a head are defined by their tensors.

The originals compute the size of a head from the width of their input, so that neither heads nor channels of a
head can be removed. After a cut the module is assigned one of these classes, with the same parameters and names.
The scale is that of the dense module, so that the scores of the kept channels do not change.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.framework.network.layers import tensor_name
from secateur.framework.pruning.adapters.base import Kept, adapter, by_head

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def remaining(rows: Tensor | None, heads: int, size: int) -> tuple[int, int]:
    """Return the number of heads and the channels per head that remain after a cut.

    `rows` are the original indices of the kept rows of the packed weight, queries first, or None if none was cut;
    `heads` and `size` are those of the dense module.
    """
    if rows is None:
        return heads, size
    queries = rows[rows < heads * size]
    if len(queries) == 0:
        return 0, size
    left = int((queries // size).unique().numel())
    return left, len(queries) // left


class SlimMultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose inner width differs from its embedding's."""

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `nn.MultiheadAttention.forward`; a 3-D `attn_mask` has the remaining heads only."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal requires attn_mask")
        batched = query.dim() == 3
        if self.num_heads == 0:
            return self.out_proj(query.new_zeros(*query.shape[:-1], 0)), None
        same = query is key is value
        if not batched:
            query, key, value = (tensor.unsqueeze(0) for tensor in (query, key, value))
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        q, k, v = self._projected(query, key, value, same)
        mask = self._mask(q, attn_mask, key_padding_mask)
        k, v, mask = self._extended(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q @ k.transpose(-2, -1)) * self.scale
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, dropout)
            mixed = weights @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            out = out.squeeze(0)
        elif not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return out, weights if batched else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> list[Tensor]:
        """Return queries, keys and values, each (batch, heads, positions, size); `same` is whether all are one."""
        packed = self.in_proj_weight
        if packed is not None and same:
            parts = functional.linear(query, packed, self.in_proj_bias).chunk(3, dim=-1)
        else:
            weights = [getattr(self, name) for name in PROJECTIONS] if packed is None else packed.chunk(3)
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            parts = tuple(map(functional.linear, (query, key, value), weights, biases))
        return [by_head(part, self.num_heads, self.head_dim) for part in parts]

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Return the sum of both masks, which is added to the scores, or None."""
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask, q)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (q.shape[0], self.num_heads))
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q).reshape(q.shape[0], 1, 1, -1)
            mask = padding if mask is None else mask + padding
        return mask

    def _extended(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the learned key and value `bias_k`, `bias_v`, and zeros (`add_zero_attn`), to every sequence."""
        before = k.shape[2]
        if self.bias_k is not None and self.bias_v is not None:
            biases = (by_head(bias, self.num_heads, self.head_dim) for bias in (self.bias_k, self.bias_v))
            k, v = (
                torch.cat([tensor, bias.expand(len(tensor), -1, -1, -1)], dim=2)
                for tensor, bias in zip((k, v), biases, strict=True)
            )
        if self.add_zero_attn:
            k, v = (functional.pad(tensor, (0, 0, 0, 1)) for tensor in (k, v))
        return k, v, mask if mask is None else functional.pad(mask, (0, k.shape[2] - before))


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a bool mask (True: not attended to) as an additive mask; others are cast."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)


@adapter(nn.MultiheadAttention, heads=lambda module: (module.num_heads, module.head_dim))
def _multihead(module: Any, kept: Kept) -> None:
    packed = _projections(module)[0]
    if not _is_cut(module, kept):
        return
    if not isinstance(module, SlimMultiheadAttention):
        module.scale = module.head_dim**-0.5
        module.dense_heads = module.num_heads, module.head_dim
        module.__class__ = SlimMultiheadAttention
        module._qkv_same_embed_dim = False  # TransformerEncoderLayer's fused kernel supports a single width only
    module.num_heads, module.head_dim = remaining(kept(packed, 0), *module.dense_heads)
    module.embed_dim = getattr(module, packed).shape[1]


def _projections(module: Any) -> tuple[str, ...]:
    """Return the names of the weights that produce queries, keys and values."""
    return PROJECTIONS if module.in_proj_weight is None else ("in_proj_weight",)


def _is_cut(module: Any, kept: Kept, inside: str = "") -> bool:
    """Whether this `nn.MultiheadAttention` was cut; its name within `kept.module` is `inside`."""
    return _any_cut(kept, [tensor_name(inside, name) for name in (*_projections(module), "out_proj.weight")])


def _any_cut(kept: Kept, names: Iterable[str]) -> bool:
    """Whether any of these weights of a module was cut."""
    return any(kept(name, dim) is not None for name in names for dim in (0, 1))


@adapter(nn.TransformerEncoder)
def _encoder(module: Any, kept: Kept) -> None:
    """Disable nested tensors if an attention was cut: they require the inner width to be that of the input."""
    for name, inner in module.named_modules():
        if isinstance(inner, nn.MultiheadAttention) and _is_cut(inner, kept, name):
            module.enable_nested_tensor = module.use_nested_tensor = False


@adapter(
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention",
    heads=lambda module: (module.n_heads, module.head_dim),
)
def _maxvit(module: Any, kept: Kept) -> None:
    if not _any_cut(kept, ("to_qkv.weight", "merge.weight")):
        return
    from secateur.framework.pruning.adapters.torchvision_attention import SlimMaxVitAttention

    if not isinstance(module, SlimMaxVitAttention):
        module.dense_heads = module.n_heads, module.head_dim
        module.__class__ = SlimMaxVitAttention
    module.n_heads, module.head_dim = remaining(kept("to_qkv.weight", 0), *module.dense_heads)


def _swin_heads(module: Any) -> tuple[int, int]:
    return module.num_heads, module.qkv.weight.shape[0] // (3 * max(1, module.num_heads))


@adapter("torchvision.models.swin_transformer.ShiftedWindowAttention", heads=_swin_heads)
def _swin(module: Any, kept: Kept) -> None:
    rows = kept("qkv.weight", 0)
    if not _any_cut(kept, ("qkv.weight", "proj.weight")):
        return
    from secateur.framework.pruning.adapters.torchvision_attention import (
        SlimWindowAttention,
        SlimWindowAttentionV2,
    )

    if not isinstance(module, (SlimWindowAttention, SlimWindowAttentionV2)):
        dense = module.qkv.weight.shape[0] if rows is None else kept.lineage.dense[kept.name("qkv.weight")][0]
        size = dense // (3 * module.num_heads)
        module.dense_heads, module.scale = (module.num_heads, size), size**-0.5
        module.__class__ = SlimWindowAttentionV2 if hasattr(module, "logit_scale") else SlimWindowAttention
    module.num_heads, module.head_dim = remaining(rows, *module.dense_heads)


@adapter("torchvision.models.vision_transformer.VisionTransformer")
def _vision_transformer(module: Any, kept: Kept) -> None:
    module.hidden_dim = module.conv_proj.weight.shape[0]
