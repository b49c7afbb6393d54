"""What operations do to labels: those that move entries about, and cut, join or repeat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.channels.tracing.compute_ops import unsupported
from secateur.framework.pruning.channels.tracing.context import Arguments, Context, Fields, rule, tensors
from secateur.framework.pruning.channels.tracing.indexing_ops import _tie_pieces
from secateur.framework.pruning.channels.tracing.labels import FIXED


@rule("clone contiguous _to_copy alias detach lift_fresh lift_fresh_copy native_dropout zero fill")
def unchanged(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """The same entries in the same places, or others, all alike."""
    ctx.give(tensors(out)[0], dict(ctx.fields(args[0])))


@rule("copy")
def copied(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Entries are written into a tensor, or into a part of another (circular padding, `x[:, :8] = y`)."""
    target, source = args[:2]
    labels_of = {axis + target.dim() - source.dim(): labels for axis, labels in ctx.fields(source).items()}
    fields = {axis: labels for axis, labels in labels_of.items() if len(labels) == target.shape[axis]}
    before = dict(ctx.fields(target))
    for axis, labels in before.items():
        if axis in fields:
            ctx.labels.join(labels, fields[axis])
        elif target.shape[axis] > 1:
            ctx.stay(labels, "meets a constant of its size: aten.copy_")
    ctx.give(target, before | fields)
    if target is not out:
        ctx.give(out, before | fields)
    whole = target._base
    if whole is not None:
        _written(ctx, target, whole, before | fields)


def _written(ctx: Context, part: Tensor, whole: Tensor, fields: Fields) -> None:
    """The labels of a view are those of the entries of the tensor that it looks at."""
    found = dict(ctx.fields(whole))
    same = part.dim() == whole.dim() and part.stride() == whole.stride()
    offset = part.storage_offset() - whole.storage_offset()
    for axis, labels in fields.items():
        if not same:
            ctx.stay(labels, "unsupported op: aten.copy_ into a view")
            continue
        stride, size = whole.stride(axis), whole.shape[axis]
        start = offset // stride % size if size > len(labels) else 0
        if start + len(labels) > size:  # memory in an order of its own
            ctx.stay(labels, "unsupported op: aten.copy_ into a view")
            continue
        entries = found.get(axis, torch.full((size,), FIXED))
        old = entries[start : start + len(labels)]
        ctx.labels.join(old, labels)
        found[axis] = entries.clone()
        found[axis][start : start + len(labels)] = torch.where(old == FIXED, labels, old)
    ctx.give(whole, found)


@rule("as_strided as_strided_")
def restrided(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Only where nothing but the memory layout changes."""
    if tuple(args[1]) == tuple(args[0].shape) and not (len(args) > 3 and args[3]):
        ctx.give(out, dict(ctx.fields(args[0])))
    else:
        unsupported(ctx, name, args, out)


@rule("permute transpose t unsqueeze squeeze movedim")
def axes_moved(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Axes change places: an empty tensor whose sizes are the axes' numbers shows which comes where."""
    x = args[0]
    # squeeze looks for ones, and what it drops was alone on its axis and never goes; the others need no ones
    sizes = [1 if size == 1 and name == "squeeze" else axis + 2 for axis, size in enumerate(x.shape)]
    moved = getattr(torch, name)(torch.empty(sizes, device="meta"), *args[1:])
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        if axis + 2 in moved.shape:
            fields[moved.shape.index(axis + 2)] = labels
    ctx.give(out, fields)


@rule("expand")
def expanded(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """New axes come first; axes of size one repeat."""
    shift = out.dim() - args[0].dim()
    fields = {
        axis + shift: labels
        for axis, labels in ctx.fields(args[0]).items()
        if out.shape[axis + shift] == len(labels)
    }
    ctx.give(out, fields)


@rule("view _unsafe_view reshape _reshape_alias flatten unflatten view_as")
def viewed(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Axes are merged and split: only those that a field's axis is merged with matter to it."""
    x = args[0]
    blocks = _blocks(x.shape, out.shape)
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        before, after = next(block for block in blocks if axis in block[0])
        place = _placed(labels, before.index(axis), [x.shape[one] for one in before])
        images = x.dim() == 2 and len(after) > 2  # vectors become (channels, height, width)
        found = _axis_of(ctx, place.reshape([out.shape[one] for one in after]), labels, first=images)
        if found is not None:
            _add(ctx, fields, after[found[0]], found[1])
    ctx.give(out, fields)


@rule("pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle repeat")
def rearranged(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Entries move in another way: the positions go through the operation themselves."""
    x = args[0]
    if name.endswith("channel_shuffle") and 1 in ctx.fields(x):  # as many are left of each piece
        _tie_pieces(ctx, ctx.fields(x)[1], x.shape[1] // args[1])
    function = torch.Tensor.repeat if name == "repeat" else getattr(torch, name.removeprefix("native_"))
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        moved = function(_placed(labels, axis, x.shape).contiguous(), *args[1:])
        found = _axis_of(ctx, moved, labels, prefer=1)
        if found is not None:
            _add(ctx, fields, *found)
    ctx.give(out, fields)


def _placed(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """The positions of the labels along `axis`, int64 of the whole shape."""
    sizes = [len(labels) if one == axis else 1 for one in range(len(shape))]
    return torch.arange(len(labels)).reshape(sizes).expand(list(shape))


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The least runs of axes of both shapes that hold equally many entries."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left: list[int] = []
        right: list[int] = []
        m = n = 1
        while not left or not right or m != n:
            if i < len(before) and (not left or m < n):
                m, i = m * before[i], i + 1
                left.append(i - 1)
            elif j < len(after) and (not right or n < m):
                n, j = n * after[j], j + 1
                right.append(j - 1)
            else:
                break
        if blocks and not (left and right):  # ones at the end belong to the last block
            blocks[-1][0].extend(left)
            blocks[-1][1].extend(right)
        else:
            blocks.append((left, right))
    return blocks


def _axis_of(
    ctx: Context, moved: Tensor, labels: Tensor, prefer: int | None = None, first: bool = False
) -> tuple[int, Tensor] | None:
    """The axis along which the labels vary once their positions moved, and the labels along it.

    Where they vary along several axes, labels are tied so that only one is left to cut: `prefer`, or that of the
    heads where these are asked for, or the last: code that splits an axis in two as a rule holds the first number
    fixed (conv groups, heads) and computes the other. It is the `first` where vectors become images, and, in a
    second pass, where a convolution has found labels on the places of its input.
    """
    if moved.numel() == 0:
        return None
    if len(labels) == 1:  # the only channel on its axis: every position of a merged axis is its own
        wide = [axis for axis, size in enumerate(moved.shape) if size > 1]
        if len(wide) > 1 or not moved.dim():
            return None
        left = wide[0] if wide else 0
        return left, labels.expand(moved.shape[left])
    spread = labels[moved]  # a channel that was flattened has one label at all its positions
    varying = _varying(spread) or _varying(moved)
    for axis in range(moved.dim()):
        if axis not in varying:
            spread = spread.narrow(axis, 0, 1)
    left = prefer if prefer in varying else varying[-1]
    if prefer is None and _splits_heads(ctx, [moved.shape[axis] for axis in varying]):
        left = varying[-2]
    elif prefer is None and (first or ctx.step in ctx.first):
        left = varying[0]
    own = spread
    for axis in varying:
        if axis != left:
            own = own.narrow(axis, 0, 1)
    if len(varying) > 1:
        ctx.labels.join(spread, own)
        if left != varying[0]:
            ctx.splits.append((ctx.step, own.flatten()))
    return left, own.reshape(-1)


def _varying(entries: Tensor) -> list[int]:
    return [
        axis
        for axis, size in enumerate(entries.shape)
        if size > 1 and not bool((entries == entries.narrow(axis, 0, 1)).all())
    ]


def _splits_heads(ctx: Context, sizes: list[int]) -> bool:
    """Whether heads are to be cut, and these axes end in (heads, size of a head)."""
    heads = ctx.heads.get(ctx.where[-1])
    return heads is not None and len(sizes) > 1 and tuple(sizes[-2:]) == heads


def _add(ctx: Context, fields: Fields, axis: int, labels: Tensor) -> None:
    """Merging two labelled axes into one leaves no slice that belongs to one channel."""
    if axis in fields:
        ctx.stay(fields[axis], "two kinds of channels on one axis")
        ctx.stay(labels, "two kinds of channels on one axis")
    fields[axis] = labels
