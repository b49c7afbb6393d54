"""Rules of operations that move or copy entries: views, permutations, writes, concatenation, indexing."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.channels.tracing.compute_ops import met, unsupported
from secateur.framework.pruning.channels.tracing.context import Arguments, Context, Fields, rule
from secateur.framework.pruning.channels.tracing.labels import FIXED


@rule("clone contiguous _to_copy alias detach lift_fresh lift_fresh_copy native_dropout zero fill")
def unchanged(ctx: Context, name: str, args: Arguments, out: Any) -> list[Fields]:
    """Operations whose result has the labels of the first argument."""
    return [ctx.fields(args[0])]


@rule("copy")
def copied(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Write entries into a tensor, or into a view of one (circular padding, `x[:, :8] = y`)."""
    target, source = args[:2]
    moved = ctx.carry(source, lambda axis: axis + target.dim() - source.dim())
    fields = {axis: labels for axis, labels in moved.items() if len(labels) == target.shape[axis]}
    before = dict(ctx.fields(target))
    for axis, labels in before.items():
        if axis in fields:
            ctx.labels.join(labels, fields[axis])
        elif target.shape[axis] > 1:
            ctx.stay(labels, "meets a constant of its size: aten.copy_")
    fields = before | fields
    ctx.give(target, fields)
    if target._base is not None:
        _written(ctx, target, target._base, fields)
    return fields


def _written(ctx: Context, part: Tensor, whole: Tensor, fields: Fields) -> None:
    """Set the labels of a base tensor from those of a view that was written to."""
    updated = dict(ctx.fields(whole))
    same = part.dim() == whole.dim() and part.stride() == whole.stride()
    offset = part.storage_offset() - whole.storage_offset()
    for axis, labels in fields.items():
        if not same:
            ctx.stay(labels, "unsupported op: aten.copy_ into a view")
            continue
        stride, size = whole.stride(axis), whole.shape[axis]
        start = offset // stride % size if size > len(labels) else 0
        if start + len(labels) > size:  # the base has another order of axes in memory
            ctx.stay(labels, "unsupported op: aten.copy_ into a view")
            continue
        entries = updated.get(axis, torch.full((size,), FIXED))
        old = entries[start : start + len(labels)]
        ctx.labels.join(old, labels)
        updated[axis] = entries.clone()
        updated[axis][start : start + len(labels)] = torch.where(old == FIXED, labels, old)
    ctx.give(whole, updated)


@rule("as_strided as_strided_")
def restrided(ctx: Context, name: str, args: Arguments, out: Any) -> list[Fields] | None:
    """Keep the labels if only the memory layout changes; else the operation has no rule."""
    if tuple(args[1]) == tuple(args[0].shape) and not args[3]:
        return [ctx.fields(args[0])]
    unsupported(ctx, name, args, out)
    return None


@rule("permute transpose t unsqueeze squeeze movedim")
def axes_moved(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Permute axes; a meta tensor whose sizes are the numbers of the axes shows the permutation."""
    x = args[0]
    # only squeeze depends on sizes of one; an axis it drops has a single channel, which is never removed
    sizes = [1 if size == 1 and name == "squeeze" else axis + 2 for axis, size in enumerate(x.shape)]
    moved = getattr(torch, name)(torch.empty(sizes, device="meta"), *args[1:])
    return ctx.carry(x, lambda axis: moved.shape.index(axis + 2) if axis + 2 in moved.shape else None)


@rule("expand")
def expanded(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Expand: new axes come first, and labels along an axis of size one are dropped when it is repeated."""
    x = args[0]
    shift = out.dim() - x.dim()
    return ctx.carry(x, lambda axis: axis + shift if out.shape[axis + shift] == x.shape[axis] else None)


@rule("view _unsafe_view reshape _reshape_alias flatten unflatten view_as")
def viewed(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Merge and split axes: labels are moved within the block of axes that their axis is merged with."""
    x = args[0]
    blocks = _blocks(x.shape, out.shape)
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        before, after = next(block for block in blocks if axis in block[0])
        place = _placed(labels, before.index(axis), [x.shape[dim] for dim in before])
        images = x.dim() == 2 and len(after) > 2  # vectors become (channels, height, width)
        field = _axis_of(ctx, place.reshape([out.shape[dim] for dim in after]), labels, first=images)
        if field is not None:
            _add(ctx, fields, after[field[0]], field[1])
    return fields


@rule("pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle repeat")
def rearranged(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Operations that move entries in other ways: the positions of the labels are passed through the operation."""
    x = args[0]
    if name.endswith("channel_shuffle") and 1 in ctx.fields(x):  # every piece loses the same positions
        ctx.labels.tie(ctx.fields(x)[1], x.shape[1] // args[1])
    function = torch.Tensor.repeat if name == "repeat" else getattr(torch, name.removeprefix("native_"))
    fields: Fields = {}
    for axis, labels in ctx.fields(x).items():
        moved = function(_placed(labels, axis, x.shape).contiguous(), *args[1:])
        field = _axis_of(ctx, moved, labels, prefer=1)
        if field is not None:
            _add(ctx, fields, *field)
    return fields


def _placed(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Return the positions of the labels along `axis`, int64, expanded to the whole shape."""
    sizes = [len(labels) if dim == axis else 1 for dim in range(len(shape))]
    return torch.arange(len(labels)).reshape(sizes).expand(list(shape))


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the shortest runs of axes of both shapes with equal numbers of entries."""
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
        if blocks and not (left and right):  # trailing axes of size one belong to the last block
            blocks[-1][0].extend(left)
            blocks[-1][1].extend(right)
        else:
            blocks.append((left, right))
    return blocks


def _axis_of(
    ctx: Context, moved: Tensor, labels: Tensor, prefer: int | None = None, first: bool = False
) -> tuple[int, Tensor] | None:
    """Return the axis along which the labels vary after their positions moved, and the labels along it.

    If they vary along several axes, labels are joined so that only one axis can be cut: `prefer`; or the heads if
    these are to be cut; or the last one, since code that splits an axis usually fixes the first size (conv groups,
    heads) and computes the other. It is the `first` if vectors become images, and, in a second pass, if a
    convolution had labels on the spatial axes of its input.
    """
    if moved.numel() == 0:
        return None
    if len(labels) == 1:  # a single channel owns every position of a merged axis
        wide = [axis for axis, size in enumerate(moved.shape) if size > 1]
        if len(wide) > 1 or not moved.dim():
            return None
        left = wide[0] if wide else 0
        return left, labels.expand(moved.shape[left])
    spread = labels[moved]  # a flattened channel has one label at all its positions
    varying = _varying(spread) or _varying(moved)
    for axis in range(moved.dim()):
        if axis not in varying:
            spread = spread.narrow(axis, 0, 1)
    left = prefer if prefer in varying else varying[-1]
    heads = ctx.heads.get(ctx.where[-1]) if len(varying) > 1 else None
    if prefer is None and heads is not None and heads == tuple(moved.shape[axis] for axis in varying[-2:]):
        left = varying[-2]  # (heads, size of a head), where whole heads are cut
    elif prefer is None and (first or ctx.step in ctx.first):
        left = varying[0]
    along = spread
    for axis in varying:
        if axis != left:
            along = along.narrow(axis, 0, 1)
    if len(varying) > 1:
        ctx.labels.join(spread, along)
        if left != varying[0]:
            ctx.splits.append((ctx.step, along.flatten()))
    return left, along.reshape(-1)


def _varying(entries: Tensor) -> list[int]:
    return [
        axis
        for axis, size in enumerate(entries.shape)
        if size > 1 and not bool((entries == entries.narrow(axis, 0, 1)).all())
    ]


def _add(ctx: Context, fields: Fields, axis: int, labels: Tensor) -> None:
    """Set the labels of an axis; protect both if it has some, since no slice belongs to a single channel then."""
    if axis in fields:
        ctx.stay(fields[axis], "two kinds of channels on one axis")
        ctx.stay(labels, "two kinds of channels on one axis")
    fields[axis] = labels


@rule("cat concatenate")
def concatenated(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Concatenate labels along the given axis, and join them along the other axes."""
    parts = [tensor for tensor in args[0] if tensor.numel()]
    fields: Fields = {}
    for axis in range(out.dim()):
        of_parts = [(part, ctx.fields(part).get(axis)) for part in parts]
        present = [labels for _, labels in of_parts if labels is not None]
        if not present:
            continue
        if axis == args[1] % out.dim():
            filled = [
                torch.full((part.shape[axis],), FIXED) if labels is None else labels for part, labels in of_parts
            ]
            fields[axis] = torch.cat(filled)
        elif all(labels is not None or not part.any() for part, labels in of_parts):
            fields[axis] = met(ctx, present)  # zeros in between equal masked channels
        else:
            for labels in present:
                ctx.stay(labels, "meets a constant of its size: aten.cat")
    return fields


@rule("stack")
def stacked(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Concatenate along a new axis."""
    new = args[1] % out.dim()
    parts = [tensor.unsqueeze(new) for tensor in args[0]]
    for part, tensor in zip(parts, args[0], strict=True):
        ctx.give(part, ctx.carry(tensor, lambda axis: axis + (axis >= new)))
    return concatenated(ctx, "cat", (parts, new), out)


@rule("slice")
def sliced(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Slice an axis.

    If the axis consists of equal pieces, they are tied: each loses the same positions. If the slice is a part that
    was concatenated before, the group is doubtful, since only trials show whether the code finds the boundary in a
    smaller network.
    """
    x, axis, start, _, step = args
    axis %= x.dim()
    fields = dict(ctx.fields(x))
    size, whole = out.shape[axis], x.shape[axis]
    if axis in fields and size != whole:
        labels = fields[axis]
        start = slice(start, None).indices(whole)[0]
        if size == 1:
            ctx.stay(labels, "selected at a constant position")
        elif step > 1 and whole % step:
            ctx.stay(labels, "sliced into unequal parts")
        elif step > 1:  # unchanged only if whole runs of `step` channels are removed
            ctx.labels.join(labels, labels[::step].repeat_interleave(step))
        elif whole % size == 0 and start % size == 0:
            ctx.labels.tie(labels, size)
        elif ctx.is_seam(labels, start) and ctx.is_seam(labels, start + size):
            ctx.doubtful.update(ctx.runs_of(labels))
        elif math.gcd(whole, start, size) > 1:  # a fraction such as a quarter, or the remainder
            ctx.labels.tie(labels, math.gcd(whole, start, size))
        else:
            ctx.stay(labels, "sliced into unequal parts")
        fields[axis] = labels[start : start + size * step : step]
    return fields


@rule("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split")
def split(ctx: Context, name: str, args: Arguments, out: Any) -> list[Fields]:
    """Tie equal pieces, each of which loses the same positions; protect unequal ones.

    Inside modules with an adapter unequal pieces are tied, too: these are packed projections.
    """
    axis = args[2] % args[0].dim()
    fields = dict(ctx.fields(args[0]))
    sizes = [piece.shape[axis] for piece in out]
    if axis not in fields:
        return [fields] * len(sizes)
    labels, common = fields.pop(axis), math.gcd(*sizes)
    if common > 1 and (len(set(sizes)) == 1 or ctx.where[-1] in ctx.adapted):
        ctx.labels.tie(labels, common)
    elif len(sizes) > 1:
        ctx.stay(labels, "split into unequal parts" if len(set(sizes)) > 1 else "split into single channels")
    return [fields | {axis: piece} for piece in labels.split(sizes)]


@rule("unbind select")
def selected(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Select one position of an axis, or each of them."""
    dropped, reason = args[1] % args[0].dim(), "selected at a constant position"
    return ctx.carry(args[0], lambda axis: reason if axis == dropped else axis - (axis > dropped))


@rule("index")
def indexed(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Index adjacent axes by tensors; the labels of the other axes are kept."""
    x, given = args[0], args[1]
    used = [axis for axis, index in enumerate(given) if index is not None]
    together = used == list(range(used[0], used[-1] + 1)) and given[used[0]].dtype != torch.bool
    wider, reason = out.dim() - x.dim(), "indexed at constant positions"
    return ctx.carry(x, lambda axis: reason if axis in used or not together else axis + wider * (axis > used[0]))


@rule("index_select roll flip")
def reordered(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Select or permute positions along some axes, whose labels are protected."""
    given = args[2] if name == "roll" else [args[1]] if name == "index_select" else args[1]
    axes = {axis % max(1, args[0].dim()) for axis in given} or set(range(args[0].dim()))
    why = "indexed at constant positions" if name == "index_select" else f"unsupported op: aten.{name}"
    return ctx.carry(args[0], lambda axis: why if axis in axes else axis)


@rule("constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
def padded(ctx: Context, name: str, args: Arguments, out: Any) -> Fields:
    """Padding along a labelled axis adds fixed positions."""
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
    return fields
