"""Rules of arithmetic, contractions, norms, reductions, pooling and attention.

The labels of a tensor are its fields: axis -> labels along it, int64 `(size,)`. The rule of an operation joins the
labels that meet, and returns the fields of the results. An operation without a rule protects the labels of its
arguments, with its name as the reason.
"""

from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.channels.tracing.attention_scale import UNMATCHED
from secateur.framework.pruning.channels.tracing.context import Arguments, Context, Fields, rule, tensors
from secateur.framework.pruning.channels.tracing.labels import FIXED


def unsupported(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Protect the labels of all arguments of an operation without a rule."""
    for tensor in tensors(args):
        for labels in ctx.fields(tensor).values():
            ctx.stay(labels, f"unsupported op: aten.{name}")


@rule("hardswish hardsigmoid hardtanh dropout masked_fill relu6 celu selu rrelu _prelu_kernel")
def pointwise(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Join the labels of the arguments along each axis, after broadcasting.

    Operations that torch tags as pointwise need no name here.
    """
    results = tensors(out)
    given = [tensor for tensor in tensors(args) if tensor.dim() > 0]
    fields: Fields = {}
    for axis, size in enumerate(results[0].shape):
        present, constant = [], False
        for tensor in given:
            dim = axis - (results[0].dim() - tensor.dim())
            if dim < 0 or tensor.shape[dim] == 1 != size:
                continue  # broadcast along this axis
            if size > 1 and tensor.stride(dim) == 0 and dim not in ctx.fields(tensor):
                continue  # expanded along this axis before
            labels = ctx.fields(tensor).get(dim)
            if labels is not None:
                present.append(labels)
            constant = constant or (labels is None and size > 1)
        if present and constant:
            for labels in present:
                ctx.stay(labels, f"meets a constant of its size: aten.{name}")
        elif present:
            fields[axis] = met(ctx, present)
    return fields


def met(ctx: Context, present: list[Tensor]) -> Tensor:
    """Join the labels of tensors along one axis, and return those of the result."""
    merged = present[0]
    for labels in present[1:]:
        ctx.labels.join(merged, labels)
        merged = torch.where(merged == FIXED, labels, merged)
    return merged


def _contract(ctx: Context, name: str, a: tuple[Tensor, int], b: tuple[Tensor, int]) -> None:
    """Join the labels of two contracted axes; protect them if the other operand is a constant."""
    (left, i), (right, j) = a, b
    first, second = ctx.fields(left).get(i), ctx.fields(right).get(j)
    if first is not None and second is not None:
        ctx.labels.join(first, second)
    elif left.shape[i] > 1:
        for labels in (first, second):
            if labels is not None:
                ctx.stay(labels, f"meets a constant of its size: aten.{name}")


def _picked(*pairs: tuple[int, Tensor | None]) -> Fields:
    return {axis: labels for axis, labels in pairs if labels is not None}


@rule("mm addmm bmm baddbmm linear")
def product(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Matrix products (..., m, k) x (..., k, n), and linear layers with a weight (n, k), perhaps with an addend.

    Labels along the batch axes are joined, too.
    """
    if name == "linear":
        a, b, added = args
    else:
        added, a, b = args[:3] if "add" in name else (None, *args[:2])
    inner, outer = (1, 0) if name == "linear" else (b.dim() - 2, b.dim() - 1)
    last = out.dim() - 1
    left, right = ctx.fields(a), ctx.fields(b)
    fields = {axis: labels for axis, labels in left.items() if axis < last}
    _contract(ctx, name, (a, last), (b, inner))
    if b.dim() == 2:
        ctx.produce(b, outer, out, last, added)
    else:
        _contract(ctx, name, (a, 0), (b, 0))
        fields = _picked((0, right.get(0))) | fields
        if 2 in left and 1 in right:  # perhaps the scores of hand-written attention
            ctx.queries.found(a, b, sure=False)
    fields |= _picked((last, right.get(outer)))
    if added is None:
        return fields
    ctx.give(out, fields)
    return pointwise(ctx, name, (out, added), out)


@rule("convolution mkldnn_convolution cudnn_convolution")
def convolution(ctx: Context, name: str, args: Arguments, out: Any) -> Fields | None:
    """Convolution: input (batch, in, ...), weight (out, in / groups, ...); transposed (in, out / groups, ...)."""
    x, weight, bias = args[:3]
    transposed, groups = (args[6], args[8]) if name == "convolution" else (False, args[-1])
    fields = ctx.fields(weight)
    if not {0, 1} <= fields.keys():  # computed from other tensors
        unsupported(ctx, name, args, out)
        return None
    ctx.produce(weight, 1 if transposed else 0, out, 1, bias)
    ctx.not_channels(x)
    for axis, labels in ctx.fields(x).items():
        if axis != 1:
            ctx.stay(labels, f"reduced over: aten.{name}")
    incoming = ctx.fields(x).get(1)
    if incoming is None:
        incoming = torch.full((x.shape[1],), FIXED)
    whole, part = fields[0], fields[1]  # along all channels, and along those of one conv group
    if groups > 1 and (len(whole) == groups if transposed else len(part) == 1):  # depthwise
        by_group = whole.reshape(groups, -1)  # whole conv groups are removed
        ctx.labels.join(by_group, by_group[:, :1])
        ctx.labels.join(by_group, incoming[:, None])
        if bool((incoming == FIXED).any()):
            ctx.stay(whole, "meets a constant of its size: depthwise convolution")
        produced = whole.repeat_interleave(len(part))
    else:  # channel j of every conv group is removed: the number of groups is unchanged and their sizes stay equal
        ctx.labels.tie(whole, len(whole) // groups)
        ctx.labels.join(incoming, whole if transposed else part.repeat(groups))
        produced = part.repeat(groups) if transposed else whole
    if bias is not None:
        ctx.labels.join(produced, ctx.fields(bias)[0])
    return {1: produced}


@rule("native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit _batch_norm_no_update "
      "cudnn_batch_norm miopen_batch_norm native_layer_norm _fused_rms_norm native_group_norm")  # fmt: skip
def norm(ctx: Context, name: str, args: Arguments, out: Any) -> list[Fields]:
    """Norms: join the labels of scale, shift and statistics with those of the channels.

    The moments of LayerNorm and RMSNorm reduce over the channels, those of GroupNorm over groups of channels: a
    cut does not change the number of groups, and their sizes stay equal; if each group is a single channel, a
    removed channel removes its group. RMSNorm has no shift, and is decomposed into several operations on other
    devices.
    """
    x, axes = args[0], [1]
    labels = ctx.fields(x).get(1)
    if "batch_norm" in name:
        what, followers = "batch norm", args[1:5]
    elif name == "native_group_norm":
        what, followers, count = "GroupNorm", args[1:3], args[6]
        if labels is not None and count < len(labels):
            ctx.labels.tie(labels, len(labels) // count)
            ctx.reduced(labels, what)
    else:
        what, followers = ("RMSNorm", args[2:3]) if name == "_fused_rms_norm" else ("LayerNorm", args[2:4])
        axes = list(range(x.dim() - len(args[1]), x.dim()))
        for axis in set(axes).intersection(ctx.fields(x)):
            ctx.reduced(ctx.fields(x)[axis], what)
    for place, axis in enumerate(axes):
        labels = ctx.fields(x).get(axis)
        for entries in (ctx.fields(follower).get(place) for follower in followers):
            if entries is not None and labels is not None:
                ctx.labels.join(labels, entries)
            elif entries is not None:
                ctx.stay(entries, f"meets a constant of its size: {what}")
    return [ctx.fields(x)]


@rule("glu")
def gated(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Gated linear unit: tie the two halves of an axis."""
    axis = args[1] % out.dim()
    fields = dict(ctx.fields(args[0]))
    if axis in fields:
        half = out.shape[axis]
        ctx.labels.tie(fields[axis], half)
        fields[axis] = fields[axis][:half]
    return fields


@rule("_softmax _log_softmax _safe_softmax cumsum sort topk logsumexp")
def along_one_axis(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Operations that mix entries along one axis; the labels of the other axes are kept."""
    given = args[2] if name == "topk" else args[1]
    axis = (given[0] if isinstance(given, (list, tuple)) else given) % args[0].dim()
    fields = dict(ctx.fields(args[0]))
    if axis in fields:
        ctx.reduced(fields[axis], name.strip("_"))
        if name in ("topk", "sort", "logsumexp"):  # the results are not these channels in this order
            ctx.stay(fields.pop(axis), f"unsupported op: aten.{name}")
    return fields


#: reductions whose value does not change if zero channels are removed; verification tries whether they are zero
SUMS = ("sum", "norm", "linalg_vector_norm")


@rule("sum mean amax amin var std prod max min argmax argmin any all var_mean std_mean norm linalg_vector_norm")
def reduction(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Reduce some or all axes; labels of the other axes are kept."""
    if name in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor):
        return pointwise(ctx, name, args, out)
    x, results = args[0], tensors(out)
    axes = _reduced_axes(x, args[2:] if "norm" in name else args[1:])  # the first argument of a norm is its order
    dropped = set() if results[0].dim() == x.dim() else axes
    for axis in axes.intersection(ctx.fields(x)) if name not in SUMS else ():
        ctx.reduced(ctx.fields(x)[axis], name)
    return ctx.carry(x, lambda axis: None if axis in axes else axis - sum(other < axis for other in dropped))


def _reduced_axes(x: Tensor, args: Arguments) -> set[int]:
    for value in args:
        if isinstance(value, (list, tuple)) and value:
            return {axis % x.dim() for axis in value}
        if isinstance(value, int) and not isinstance(value, bool):
            return {value % x.dim()}
    return set(range(x.dim()))


@rule("max_pool2d_with_indices max_pool3d_with_indices max_pool1d avg_pool1d avg_pool2d avg_pool3d "
      "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d "
      "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
      "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa "
      "_upsample_nearest_exact2d")  # fmt: skip
def spatial(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Operations on the spatial axes of each channel separately: (batch, channels, spatial...)."""
    ctx.not_channels(args[0])
    return ctx.carry(args[0], lambda axis: axis if axis < 2 else f"reduced over: {name}")


@rule("embedding _embedding_bag _embedding_bag_forward_only")
def embedding(ctx: Context, name: str, args: Arguments, out: Any) -> list[Fields]:
    """Rows of an embedding table, or sums and means of them; the table's columns are the channels it produces."""
    table = args[0]
    fields = ctx.fields(table)
    if 0 in fields:
        ctx.stay(fields[0], "meets a constant of its size: embedding")
    result = tensors(out)[0]
    ctx.produce(table, 1, result, result.dim() - 1)
    return [_picked((result.dim() - 1, fields.get(1)))]


@rule("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
      "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
      "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def attention(ctx: Context, name: str, args: Arguments, out: Any) -> list[Fields]:
    """Attention of queries, keys, values (batch, heads, places, size); the default scale depends on the size."""
    query, key, value = args[:3]
    kept = args[-1] is not None or ctx.where[-1] in ctx.adapted
    if not kept and 3 in ctx.fields(query) and 3 in ctx.fields(key):
        kept = ctx.queries.found(query, key, sure=True)
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
    return [_picked((1, fields.get(1)), (3, fields.get(3)))]


@rule("zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty")
def created(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Make a tensor from sizes alone, without labels."""
