"""What operations do to labels: arithmetic, contractions, norms, reductions, pooling.

A tensor's labels are fields: axis -> the labels along it, int64 `(size,)`. An operation's rule joins the labels
that meet, and gives fields to the results. What has no rule keeps its labels from ever being cut, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.channels.tracing.attention_scale import UNMATCHED
from secateur.framework.pruning.channels.tracing.context import Arguments, Context, Fields, rule, tensors
from secateur.framework.pruning.channels.tracing.labels import FIXED


def unsupported(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """No rule: whatever flows in stays."""
    for tensor in tensors(args):
        for labels in ctx.fields(tensor).values():
            ctx.stay(labels, f"unsupported op: aten.{name}")


def pointwise(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Tensors meet entry by entry, broadcast: along each axis their labels join."""
    results = tensors(out)
    given = [tensor for tensor in tensors(args) if tensor.dim() > 0]
    fields: Fields = {}
    for axis, size in enumerate(results[0].shape):
        present, constant = [], False
        for tensor in given:
            own = axis - (results[0].dim() - tensor.dim())
            if own < 0 or tensor.shape[own] == 1 != size:
                continue  # broadcast along this axis
            if size > 1 and tensor.stride(own) == 0 and own not in ctx.fields(tensor):
                continue  # the same, expanded before
            labels = ctx.fields(tensor).get(own)
            if labels is not None:
                present.append(labels)
            constant = constant or (labels is None and size > 1)
        if present and constant:
            for labels in present:
                ctx.stay(labels, f"meets a constant of its size: aten.{name}")
        elif present:
            fields[axis] = _met(ctx, present)
    for result in results:
        ctx.give(result, dict(fields))


def _met(ctx: Context, present: list[Tensor]) -> Tensor:
    merged = present[0]
    for labels in present[1:]:
        ctx.labels.join(merged, labels)
        merged = torch.where(merged == FIXED, labels, merged)
    return merged


def _contract(ctx: Context, name: str, a: tuple[Tensor, int], b: tuple[Tensor, int]) -> None:
    """Sum over an axis of each: their labels join; against a constant they stay."""
    (left, i), (right, j) = a, b
    one, other = ctx.fields(left).get(i), ctx.fields(right).get(j)
    if one is not None and other is not None:
        ctx.labels.join(one, other)
    elif left.shape[i] > 1:
        for labels in (one, other):
            if labels is not None:
                ctx.stay(labels, f"meets a constant of its size: aten.{name}")


def _picked(*pairs: tuple[int, Tensor | None]) -> Fields:
    return {axis: labels for axis, labels in pairs if labels is not None}


@rule("mm addmm")
def matrix_product(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """(m, k) x (k, n), with or without something added."""
    added, (a, b) = (args[0], args[1:3]) if name == "addmm" else (None, args[:2])
    _contract(ctx, name, (a, 1), (b, 0))
    ctx.produce(b, 1, out, 1, added)
    ctx.give(out, _picked((0, ctx.fields(a).get(0)), (1, ctx.fields(b).get(1))))
    if added is not None:
        pointwise(ctx, name, (out, added), out)


@rule("bmm baddbmm")
def batched_product(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """(b, m, k) x (b, k, n): the batches pair up as well."""
    added, (a, b) = (args[0], args[1:3]) if name == "baddbmm" else (None, args[:2])
    _contract(ctx, name, (a, 2), (b, 1))
    _contract(ctx, name, (a, 0), (b, 0))
    left, right = ctx.fields(a), ctx.fields(b)
    if 2 in left and 1 in right:  # scores of attention, written by hand?
        ctx.queries.found(ctx.number(a), ctx.number(b), sure=False)
    ctx.give(out, _picked((0, left.get(0, right.get(0))), (1, left.get(1)), (2, right.get(2))))
    if added is not None:
        pointwise(ctx, name, (out, added), out)


@rule("linear")
def linear(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """(..., in) with a weight (out, in)."""
    x, weight = args[:2]
    _contract(ctx, name, (x, x.dim() - 1), (weight, 1))
    ctx.produce(weight, 0, out, out.dim() - 1, args[2] if len(args) > 2 else None)
    fields = {axis: labels for axis, labels in ctx.fields(x).items() if axis < x.dim() - 1}
    ctx.give(out, fields | _picked((out.dim() - 1, ctx.fields(weight).get(0))))
    if len(args) > 2 and args[2] is not None:
        pointwise(ctx, name, (out, args[2]), out)


@rule("convolution mkldnn_convolution cudnn_convolution")
def convolution(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Inputs (batch, in, ...) with a weight (out, in / groups, ...), or (in, out / groups, ...) if transposed."""
    x, weight, bias = args[:3]
    transposed, groups = (args[6], args[8]) if name == "convolution" else (False, args[-1])
    fields = ctx.fields(weight)
    if not {0, 1} <= fields.keys():  # computed from other tensors
        unsupported(ctx, name, args, out)
        return
    produced, read = (fields[1], fields[0]) if transposed else (fields[0], fields[1])
    ctx.produce(weight, 1 if transposed else 0, out, 1, bias)
    ctx.not_channels(x)
    for axis, labels in ctx.fields(x).items():
        if axis != 1:
            ctx.stay(labels, f"reduced over: aten.{name}")
    incoming = ctx.fields(x).get(1)
    if incoming is None:
        incoming = torch.full((x.shape[1],), FIXED)
    if groups == 1:
        ctx.labels.join(incoming, read)
    elif transposed:
        produced = _transposed_groups(ctx, incoming, read, produced, groups)
    elif len(read) == 1:  # filters of each input channel: whole conv groups go
        each = produced.reshape(groups, -1)
        ctx.labels.join(each, each[:, :1])
        ctx.labels.join(each, incoming[:, None])
        if bool((incoming == FIXED).any()):
            ctx.stay(produced, "meets a constant of its size: depthwise convolution")
    else:  # channel j of every conv group goes, so that there are as many groups as before, all alike
        each = produced.reshape(groups, -1)
        ctx.labels.join(each, each[:1])
        ctx.labels.join(incoming.reshape(groups, -1), read[None])
    ctx.give(out, {1: produced})
    if bias is not None:
        ctx.labels.join(produced, ctx.fields(bias)[0])


def _transposed_groups(ctx: Context, incoming: Tensor, read: Tensor, produced: Tensor, groups: int) -> Tensor:
    """The labels of the outputs of a grouped transposed convolution, whose weight has all inputs along its first
    dimension, and along its second the outputs of one group."""
    ctx.labels.join(incoming, read)
    if len(read) == groups:  # filters of each input channel: whole conv groups go
        if bool((incoming == FIXED).any()):
            ctx.stay(read, "meets a constant of its size: depthwise convolution")
        return read.repeat_interleave(len(produced))
    each = read.reshape(groups, -1)  # channel j of every conv group goes, on both sides
    ctx.labels.join(each, each[:1])
    return produced.repeat(groups)


@rule("native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit _batch_norm_no_update "
      "cudnn_batch_norm miopen_batch_norm")  # fmt: skip
def batch_norm(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Scale, shift and statistics follow their channel."""
    _follow(ctx, args[0], 1, args[1:5], "batch norm")
    ctx.give(out[0], dict(ctx.fields(args[0])))


@rule("native_layer_norm")
def layer_norm(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Scale and shift follow; mean and variance run over the channels."""
    _norm_over(ctx, args[0], args[1], args[2:4], "LayerNorm")
    ctx.give(out[0], dict(ctx.fields(args[0])))


@rule("_fused_rms_norm")
def rms_norm(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """The scale follows; the mean square runs over the channels. Only some devices have this as one operation."""
    _norm_over(ctx, args[0], args[1], args[2:3], "RMSNorm")
    ctx.give(out[0], dict(ctx.fields(args[0])))


def _norm_over(ctx: Context, x: Tensor, shape: Sequence[int], followers: Arguments, what: str) -> None:
    for place, axis in enumerate(range(x.dim() - len(shape), x.dim())):
        _follow(ctx, x, axis, followers, what, place)
        if axis in ctx.fields(x):
            ctx.reduced(ctx.fields(x)[axis], what)


@rule("native_group_norm")
def group_norm(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Mean and variance run over groups of channels; there are as many groups as before, all alike.

    A channel that is a group of its own is normed by itself, and takes its group along when it goes.
    """
    x, count = args[0], args[6]
    _follow(ctx, x, 1, args[1:3], "GroupNorm")
    labels = ctx.fields(x).get(1)
    if labels is not None and count < len(labels):
        each = labels.reshape(count, -1)
        ctx.labels.join(each, each[:1])
        ctx.reduced(labels, "GroupNorm")
    ctx.give(out[0], dict(ctx.fields(x)))


def _follow(ctx: Context, x: Tensor, axis: int, followers: Arguments, what: str, place: int = 0) -> None:
    labels = ctx.fields(x).get(axis)
    for follower in followers:
        own = ctx.fields(follower).get(place)
        if own is not None and labels is not None:
            ctx.labels.join(labels, own)
        elif own is not None:
            ctx.stay(own, f"meets a constant of its size: {what}")


@rule("glu")
def gated(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """One half of an axis times a function of the other: they shrink alike."""
    axis = (args[1] if len(args) > 1 else -1) % out.dim()
    fields = dict(ctx.fields(args[0]))
    if axis in fields:
        half = out.shape[axis]
        halves = fields[axis].reshape(2, half)
        ctx.labels.join(halves, halves[:1])
        fields[axis] = halves[0]
    ctx.give(out, fields)


@rule("_softmax _log_softmax _safe_softmax cumsum sort topk logsumexp")
def along_one_axis(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Mixes what lies along one axis; the others go through."""
    given = args[2] if name == "topk" else args[1]
    axis = (given[0] if isinstance(given, (list, tuple)) else given) % args[0].dim()
    fields = dict(ctx.fields(args[0]))
    if axis in fields:
        ctx.reduced(fields[axis], name.strip("_"))
        if name in ("topk", "sort", "logsumexp"):  # what comes out are not these channels in this order
            ctx.stay(fields.pop(axis), f"unsupported op: aten.{name}")
    for result in tensors(out):
        ctx.give(result, dict(fields))


#: the same without channels that are zero; whether they are, the proof finds out
SUMS = ("sum", "norm", "linalg_vector_norm")


@rule("sum mean amax amin var std prod max min argmax argmin any all var_mean std_mean norm linalg_vector_norm")
def reduction(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Sums up some axes, or all; labels along them stay, the others go through."""
    if name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor):
        pointwise(ctx, name, args, out)
        return
    x, results = args[0], tensors(out)
    axes = _reduced_axes(x, args[2:] if "norm" in name else args[1:])  # a norm's first argument is its power
    kept_dims = results[0].dim() == x.dim()
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        if axis in axes and name not in SUMS:
            ctx.reduced(labels, name)
        elif axis in axes:
            continue
        else:
            fields[axis if kept_dims else axis - sum(one < axis for one in axes)] = labels
    for result in results:
        ctx.give(result, dict(fields))


def _reduced_axes(x: Tensor, args: Arguments) -> set[int]:
    for one in args:
        if isinstance(one, (list, tuple)) and one:
            return {axis % x.dim() for axis in one}
        if isinstance(one, int) and not isinstance(one, bool):
            return {one % x.dim()}
    return set(range(x.dim()))


@rule("max_pool2d_with_indices max_pool3d_with_indices max_pool1d avg_pool1d avg_pool2d avg_pool3d "
      "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d "
      "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
      "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa "
      "_upsample_nearest_exact2d")  # fmt: skip
def spatial(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Works on the places of each channel by itself: (batch, channels, places...)."""
    ctx.not_channels(args[0])
    fields: Fields = {}
    for axis, labels in ctx.fields(args[0]).items():
        if axis < 2:
            fields[axis] = labels
        else:
            ctx.stay(labels, f"reduced over: {name}")
    for result in tensors(out):
        ctx.give(result, dict(fields))


@rule("embedding _embedding_bag _embedding_bag_forward_only")
def embedding(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Rows of a table, or sums and means of them: its columns are the channels, which it produces."""
    table = args[0]
    fields = ctx.fields(table)
    if 0 in fields:
        ctx.stay(fields[0], "meets a constant of its size: embedding")
    found = tensors(out)[0]
    ctx.produce(table, 1, found, found.dim() - 1)
    ctx.give(found, _picked((found.dim() - 1, fields.get(1))))


@rule("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
      "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
      "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def attention(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Queries, keys, values (batch, heads, places, size): unless given, the scale depends on the size."""
    query, key, value = args[:3]
    kept = args[-1] is not None or ctx.where[-1] in ctx.adapted
    if not kept and 3 in ctx.fields(query) and 3 in ctx.fields(key):
        kept = ctx.queries.found(ctx.number(query), ctx.number(key), sure=True)
    for tensor in (query, key, value):
        for axis, labels in ctx.fields(tensor).items():
            if axis in (0, 2):
                ctx.stay(labels, "reduced over: attention")
            elif axis == 3 and tensor is not value and not kept:
                ctx.stay(labels, UNMATCHED)
    _contract(ctx, name, (query, 3), (key, 3))
    _contract(ctx, name, (query, 1), (key, 1))
    _contract(ctx, name, (query, 1), (value, 1))
    fields = ctx.fields(value)
    ctx.give(tensors(out)[0], _picked((1, fields.get(1)), (3, fields.get(3))))
