"""What operations do to labels: those that move entries about, and cut, join or repeat tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.labels import FIXED
from secateur.framework.pruning.rules import Arguments, Context, Fields, rule, tensors, unsupported


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


@rule("cat concatenate")
def concatenated(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Along the axis of the joint labels follow each other; along the others they meet."""
    parts = [tensor for tensor in args[0] if tensor.numel()]
    joint = (args[1] if len(args) > 1 else 0) % out.dim()
    fields: Fields = {}
    for axis in range(out.dim()):
        each = [ctx.fields(part).get(axis) for part in parts]
        some = [labels for labels in each if labels is not None]
        if not some:
            continue
        if axis == joint:
            filled = [
                torch.full((part.shape[axis],), FIXED) if labels is None else labels
                for part, labels in zip(parts, each, strict=True)
            ]
            fields[axis] = torch.cat(filled)
        elif all(labels is not None or not part.any() for part, labels in zip(parts, each, strict=True)):
            for labels in some[1:]:  # zeros in between are what a mask leaves
                ctx.labels.join(some[0], labels)
            fields[axis] = some[0]
        else:
            for labels in some:
                ctx.stay(labels, "meets a constant of its size: aten.cat")
    ctx.give(out, fields)


@rule("stack")
def stacked(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """A concatenation along a new axis."""
    new = (args[1] if len(args) > 1 else 0) % out.dim()
    parts = []
    for tensor in args[0]:
        part = tensor.unsqueeze(new)
        ctx.give(part, {axis + (axis >= new): labels for axis, labels in ctx.fields(tensor).items()})
        parts.append(part)
    concatenated(ctx, "cat", (parts, new), out)


@rule("slice")
def sliced(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """A piece of an axis. Where the axis is so many equal pieces they shrink alike. Where pieces that were put
    together come apart again, only trials can tell whether the code finds the seam in a smaller network."""
    x, axis, start, _, step = args
    axis %= x.dim()
    fields = dict(ctx.fields(x))
    size, whole = out.shape[axis], x.shape[axis]
    if axis in fields and size != whole:
        labels = fields[axis]
        start = min(max(0, (start or 0) + (whole if (start or 0) < 0 else 0)), whole)
        if size == 1:
            ctx.stay(labels, "selected at a constant position")
        elif step > 1:
            _tie_neighbours(ctx, labels, step)
        elif whole % size == 0 and start % size == 0:
            _tie_pieces(ctx, labels, size)
        elif ctx.is_seam(labels, start) and ctx.is_seam(labels, start + size):
            ctx.doubtful.update(ctx.runs_of(labels))
        elif math.gcd(whole, start, size) > 1:  # a share such as a quarter, and the rest
            _tie_pieces(ctx, labels, math.gcd(whole, start, size))
        else:
            ctx.stay(labels, "sliced into unequal parts")
        fields[axis] = labels[start : start + size * step : step]
    ctx.give(out, fields)


@rule("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split")
def split(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Equal pieces shrink alike; unequal ones stay, except where an adapter cuts packed projections alike."""
    axis = (args[2] if len(args) > 2 else 0) % args[0].dim()
    fields = dict(ctx.fields(args[0]))
    sizes = [piece.shape[axis] for piece in out]
    labels = fields.pop(axis, None)
    if labels is not None and len(set(sizes)) == 1 < sizes[0]:
        _tie_pieces(ctx, labels, sizes[0])
    elif labels is not None and ctx.where[-1] in ctx.adapted and math.gcd(*sizes) > 1:
        _tie_pieces(ctx, labels, math.gcd(*sizes))
    elif labels is not None and len(sizes) > 1:
        ctx.stay(labels, "split into unequal parts" if len(set(sizes)) > 1 else "split into single channels")
    start = 0
    for piece, size in zip(out, sizes, strict=True):
        own = {} if labels is None else {axis: labels[start : start + size]}
        ctx.give(piece, fields | own)
        start += size


def _tie_pieces(ctx: Context, labels: Tensor, size: int) -> None:
    pieces = labels.reshape(-1, size)
    ctx.labels.join(pieces, pieces[:1])


def _tie_neighbours(ctx: Context, labels: Tensor, step: int) -> None:
    """Every n-th channel is every n-th again where whole runs of n are gone."""
    if len(labels) % step:
        ctx.stay(labels, "sliced into unequal parts")
    else:
        runs = labels.reshape(-1, step)
        ctx.labels.join(runs, runs[:, :1].expand_as(runs))


@rule("unbind")
def unbound(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Every position of an axis becomes a tensor."""
    axis = (args[1] if len(args) > 1 else 0) % args[0].dim()
    for piece in out:
        _drop_axis(ctx, args[0], axis, piece)


@rule("select")
def selected(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """One position of an axis."""
    _drop_axis(ctx, args[0], args[1] % args[0].dim(), out)


def _drop_axis(ctx: Context, x: Tensor, dropped: int, out: Tensor) -> None:
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        if axis == dropped:
            ctx.stay(labels, "selected at a constant position")
        else:
            fields[axis - (axis > dropped)] = labels
    ctx.give(out, fields)


@rule("index")
def indexed(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Positions picked by tensors of indices, next to each other; the other axes go through."""
    x, given = args[0], args[1]
    used = [axis for axis, one in enumerate(given) if one is not None]
    together = used == list(range(used[0], used[-1] + 1)) and given[used[0]].dtype != torch.bool
    width = out.dim() - (x.dim() - len(used))
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        if axis in used or not together:
            ctx.stay(labels, "indexed at constant positions")
        else:
            fields[axis if axis < used[0] else axis - len(used) + width] = labels
    ctx.give(out, fields)


@rule("index_select")
def index_selected(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Positions picked along one axis; the other axes go through."""
    picked = args[1] % max(1, args[0].dim())
    fields: Fields = {}
    for axis, labels in ctx.fields(args[0]).items():
        if axis == picked:
            ctx.stay(labels, "indexed at constant positions")
        else:
            fields[axis] = labels
    ctx.give(out, fields)


@rule("constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
def padded(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Padding along the channels adds fixed positions."""
    x, amounts = args[0], list(args[1])
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        at = 2 * (x.dim() - 1 - axis)
        here = amounts[at : at + 2]
        if not any(here):
            fields[axis] = labels
        elif name == "constant_pad_nd" and min(here) >= 0:
            fields[axis] = torch.nn.functional.pad(labels, here, value=FIXED)
        else:
            ctx.stay(labels, "padded or cropped along its axis")
    ctx.give(out, fields)


@rule("roll flip")
def rolled(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Positions along some axes change places; channels there would come to lie elsewhere."""
    given = args[2] if name == "roll" and len(args) > 2 else args[1] if name == "flip" else ()
    moved = {axis % args[0].dim() for axis in given} or set(range(args[0].dim()))
    fields: Fields = {}
    for axis, labels in ctx.fields(args[0]).items():
        if axis in moved:
            ctx.stay(labels, f"unsupported op: aten.{name}")
        else:
            fields[axis] = labels
    ctx.give(out, fields)
