"""Rules of operations that concatenate, split, slice and index tensors."""

import math
from typing import Any

import torch
from torch import Tensor

from secateur.framework.pruning.channels.tracing.context import Arguments, Context, Fields, rule
from secateur.framework.pruning.channels.tracing.labels import FIXED


@rule("cat concatenate")
def concatenated(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Concatenate labels along the given axis, and join them along the other axes."""
    parts = [tensor for tensor in args[0] if tensor.numel()]
    joint = (args[1] if len(args) > 1 else 0) % out.dim()
    fields: Fields = {}
    for axis in range(out.dim()):
        fields_of = [ctx.fields(part).get(axis) for part in parts]
        present = [labels for labels in fields_of if labels is not None]
        if not present:
            continue
        if axis == joint:
            filled = [
                torch.full((part.shape[axis],), FIXED) if labels is None else labels
                for part, labels in zip(parts, fields_of, strict=True)
            ]
            fields[axis] = torch.cat(filled)
        elif all(labels is not None or not part.any() for part, labels in zip(parts, fields_of, strict=True)):
            for labels in present[1:]:  # zeros in between equal masked channels
                ctx.labels.join(present[0], labels)
            fields[axis] = present[0]
        else:
            for labels in present:
                ctx.stay(labels, "meets a constant of its size: aten.cat")
    ctx.give(out, fields)


@rule("stack")
def stacked(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Concatenate along a new axis."""
    new = (args[1] if len(args) > 1 else 0) % out.dim()
    parts = []
    for tensor in args[0]:
        part = tensor.unsqueeze(new)
        ctx.give(part, {axis + (axis >= new): labels for axis, labels in ctx.fields(tensor).items()})
        parts.append(part)
    concatenated(ctx, "cat", (parts, new), out)


@rule("slice")
def sliced(ctx: Context, name: str, args: Arguments, out: Any) -> None:
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
        start = min(max(0, (start or 0) + (whole if (start or 0) < 0 else 0)), whole)
        if size == 1:
            ctx.stay(labels, "selected at a constant position")
        elif step > 1:
            _tie_neighbours(ctx, labels, step)
        elif whole % size == 0 and start % size == 0:
            _tie_pieces(ctx, labels, size)
        elif ctx.is_seam(labels, start) and ctx.is_seam(labels, start + size):
            ctx.doubtful.update(ctx.runs_of(labels))
        elif math.gcd(whole, start, size) > 1:  # a fraction such as a quarter, or the remainder
            _tie_pieces(ctx, labels, math.gcd(whole, start, size))
        else:
            ctx.stay(labels, "sliced into unequal parts")
        fields[axis] = labels[start : start + size * step : step]
    ctx.give(out, fields)


@rule("split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split")
def split(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Tie equal pieces, each of which loses the same positions; protect unequal ones.

    Inside modules with an adapter unequal pieces are tied, too: these are packed projections.
    """
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
        part = {} if labels is None else {axis: labels[start : start + size]}
        ctx.give(piece, fields | part)
        start += size


def _tie_pieces(ctx: Context, labels: Tensor, size: int) -> None:
    pieces = labels.reshape(-1, size)
    ctx.labels.join(pieces, pieces[:1])


def _tie_neighbours(ctx: Context, labels: Tensor, step: int) -> None:
    """Tie runs of `step` channels: a slice with a step is unchanged only if whole runs are removed."""
    if len(labels) % step:
        ctx.stay(labels, "sliced into unequal parts")
    else:
        runs = labels.reshape(-1, step)
        ctx.labels.join(runs, runs[:, :1].expand_as(runs))


@rule("unbind")
def unbound(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Return one tensor per position of an axis."""
    axis = (args[1] if len(args) > 1 else 0) % args[0].dim()
    _drop_axis(ctx, args[0], axis, out)


@rule("select")
def selected(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Select one position of an axis."""
    _drop_axis(ctx, args[0], args[1] % args[0].dim(), out)


def _drop_axis(ctx: Context, x: Tensor, dropped: int, out: Any) -> None:
    reason = "selected at a constant position"
    ctx.carry(x, out, lambda axis: reason if axis == dropped else axis - (axis > dropped))


@rule("index")
def indexed(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Index adjacent axes by tensors; the labels of the other axes are kept."""
    x, given = args[0], args[1]
    used = [axis for axis, index in enumerate(given) if index is not None]
    together = used == list(range(used[0], used[-1] + 1)) and given[used[0]].dtype != torch.bool
    wider = out.dim() - x.dim()

    def place(axis: int) -> int | str:
        if axis in used or not together:
            return "indexed at constant positions"
        return axis if axis < used[0] else axis + wider

    ctx.carry(x, out, place)


@rule("index_select")
def index_selected(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Index one axis; the labels of the other axes are kept."""
    picked = args[1] % max(1, args[0].dim())
    ctx.carry(args[0], out, lambda axis: "indexed at constant positions" if axis == picked else axis)


@rule("constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
def padded(ctx: Context, name: str, args: Arguments, out: Any) -> None:
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
    ctx.give(out, fields)


@rule("roll flip")
def rolled(ctx: Context, name: str, args: Arguments, out: Any) -> None:
    """Permute positions along some axes, whose labels are protected."""
    given = args[2] if name == "roll" and len(args) > 2 else args[1] if name == "flip" else ()
    moved = {axis % args[0].dim() for axis in given} or set(range(args[0].dim()))
    ctx.carry(args[0], out, lambda axis: f"unsupported op: aten.{name}" if axis in moved else axis)
