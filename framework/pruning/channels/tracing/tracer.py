"""Tracer: propagate labels of channels through every operation of one forward pass.

Every position along every dimension of every parameter and buffer has an integer label. A `TorchDispatchMode`
intercepts each ATen operation and applies its rule (compute_ops, layout_ops) to the fields of its
arguments, axis -> labels along it. Labels that meet in a sum, product or contraction are joined (union-find in
`Labels`). Nothing depends on the architecture. Two convolutions, cat, flatten and a linear layer, with the labels
of three dimensions:

    a.weight (2, 3, k, k)   dim 0: [0 1]                             x: (1, 3, k+1, k+1) has no labels
    b.weight (2, 3, k, k)   dim 0: [2 3]
    fc.weight (5, 16)       dim 1: [4 5 6 7 | 8 9 10 11 | 12 13 14 15 | 16 17 18 19]

    a(x): axis 1 = [0 1] --+
                           +--cat, axis 1--> [0 1 2 3] --view (1, 4, 2, 2) -> (1, 16)--> [0 0 0 0 1 1 1 1 2 ... 3]
    b(x): axis 1 = [2 3] --+                                                                 |
                                     linear contracts it with dim 1 of fc.weight:   0 ~ 4 5 6 7, 1 ~ 8 9 10 11, ...
    component {0, 4, 5, 6, 7} = channel 0 of a = a.weight[0], a.bias[0] and the columns 0..3 of fc.weight

1. `_label` numbers the positions (the label FIXED = -1 is a position that is always kept); `_follow` runs the
   model, on the meta device if it consists of built-in layers only. A view that merges axes repeats labels, one
   that splits an axis joins those that must be removed together (channel j of every head), add joins, split and
   chunk tie pieces.
2. An operation without a rule, or a tensor that meets a constant of its size, protects the labels, with a reason
   that is discarded if the outputs do not depend on that operation (`dataflow.Dataflow`). Output labels are
   protected, too.
3. `grouping.collect` computes the components; components with the same slices, equally often, are one group.
4. `attention_scale` records which rows are queries, `Dataflow.unavoidable` which groups may be removed entirely.
5. A rule cannot prove that a cut equals a mask: `verification` tries every free group.
"""

import functools
import warnings
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.framework.network.copies import twin_of
from secateur.framework.network.layers import MADE_UP, named_tensors, prunable_layers
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.outputs import hooked, output_tensors
from secateur.framework.network.preserve import replace_tensors
from secateur.framework.pruning.adapters.torch_layers import heads_of
from secateur.framework.pruning.channels.groups import MODEL_OUTPUT
from secateur.framework.pruning.channels.tracing import layout_ops as layout_ops  # registers its rules
from secateur.framework.pruning.channels.tracing.compute_ops import pointwise, unsupported
from secateur.framework.pruning.channels.tracing.context import RULES, Context, tensors
from secateur.framework.pruning.channels.tracing.dataflow import storage_of
from secateur.utils.errors import UsageError

#: operations with which the code may compute from a size
ARITHMETIC = frozenset(
    ["add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow", "clamp",
     "clamp_min", "clamp_max", "where", "masked_fill"]
)  # fmt: skip
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

#: parts of names of operations that differ between devices (attention)
_BY_DEVICE = ("softmax", "bmm", "dot_product")
#: operations whose result has the shape of the input, for which the meta kernels of torch take 1 to 2 ms
_ALIKE = frozenset(
    ["relu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "elu", "leaky_relu", "tanh"]
)


class _Tracer(TorchDispatchMode):
    """Applies the rule of every operation that has a labelled argument."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _of_shapes(func, args, kwargs or {})
        ctx, given = self.context, _bound(func, args, kwargs or {})
        name, before = func.overloadpacket.__name__, len(ctx.made)
        ctx.path.append(name)
        ctx.numberless = ctx.numberless and not (name.rstrip("_") in ARITHMETIC and _has_number(ctx, name, given))
        try:
            try:
                self._moved(func, ctx, given, out)
            except (RuntimeError, LookupError, TypeError, ValueError):  # arguments that the rule does not support
                unsupported(ctx, name, given, out)
            ctx.follow_queries(name, func, args, kwargs or {}, out)
            return out
        finally:
            made = [int(part[0]) for part in ctx.made[before:] if not isinstance(part, str) and len(part)]
            ctx.dataflow.record(tensors(given), tensors(out), made)

    def _moved(self, func: Any, ctx: Context, given: list[Any], out: Any) -> None:
        """Apply the rule of the operation."""
        results = tensors(out)
        if not any(ctx.fields(tensor) for tensor in tensors(given)) or not results:
            return
        name = func.overloadpacket.__name__
        default = pointwise if torch.Tag.pointwise in func.tags else unsupported
        if name not in RULES and default is unsupported and name.rstrip("_") in RULES:
            name = name.rstrip("_")  # relu_ is relu in place
        fields = RULES.get(name, default)(ctx, name, given, out)
        if fields is not None:
            each = fields if isinstance(fields, list) else [fields] * len(results)
            for result, part in zip(results, each, strict=False):
                ctx.give(result, dict(part))


def _of_shapes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation, with shortcuts for tensors on the meta device."""
    given = args[0] if args else None
    if isinstance(given, Tensor) and given.is_meta and not kwargs:
        name = func.overloadpacket.__name__
        if any(part in name for part in _BY_DEVICE):
            raise NotImplementedError(f"{name} on the meta device")
        if name in _ALIKE and given.is_floating_point():
            return torch.empty_like(given)
        if name.endswith("_") and name[:-1] in _ALIKE:
            return given
        if name == "native_batch_norm":
            saved = given.new_empty(given.shape[1] if args[5] else 0)
            return torch.empty_like(given), saved, torch.empty_like(saved)
    return func(*args, **kwargs)


def _has_number(ctx: Context, name: str, given: list[Any]) -> bool:
    """Whether an operand is a number, or a one-entry tensor that is no parameter and independent of the input."""
    if name.startswith(("add", "sub", "rsub")):
        given = given[:2]  # the third argument is the factor `alpha`, usually 1
    flowing = ctx.dataflow.flowing
    return any(
        value.numel() == 1 and not ctx.is_parameter(value) and ctx.dataflow.number(value) not in flowing
        if isinstance(value, Tensor)
        else isinstance(value, (int, float))
        for value in given
    )


def _bound(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return all arguments in the order of the operation's schema, with defaults."""
    return [*args, *(kwargs.get(name, default) for name, default in _arguments(func)[len(args) :])]


@functools.cache
def _arguments(func: Any) -> list[tuple[str, Any]]:
    """Return names and defaults, cached: reading a schema takes as long as some operations."""
    return [(argument.name, argument.default_value) for argument in func._schema.arguments]


def meta_copy(model: nn.Module) -> nn.Module | None:
    """Return a copy of the network on the meta device, or None if its forward pass may depend on values.

    Third-party modules with tensors may depend on values, and so may the user's hooks.
    """
    for module in model.modules():
        values = [*module._parameters.values(), *module._buffers.values()]
        if any(value is not None for value in values) and not isinstance(module, MADE_UP):
            return None
        if any(getattr(module, name) for name in _HOOKS):
            return None
    shadow = twin_of(model)
    empty = {}
    for tensor in named_tensors(shadow).values():
        value = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    replace_tensors(shadow, empty)
    return shadow


def _follow(model: nn.Module, example: Tensor, attention: str, first: Collection[int] = ()) -> Context:
    """Run the model with labels, and return what was recorded.

    `first` has the numbers of operations that split an axis and have the channels on the first part.
    """
    context = Context()
    context.first.update(first)
    _label(model, context)
    layers = set(prunable_layers(model))
    heads = {name: sizes for name, module in model.named_modules() if (sizes := heads_of(module))}
    context.adapted.update(heads)
    context.heads.update(heads if attention == "heads" else {})
    if attention == "heads" and not context.heads:
        warnings.warn(
            "attention='heads': no module has an adapter that defines its heads, see secateur.adapter",
            stacklevel=5,
        )

    def leave(name: str, *_: Any) -> None:
        context.where.pop()
        if name in layers:
            context.made.append(name)

    modules = list(model.named_modules())
    before = [(module, lambda *_, name=name: context.where.append(name)) for name, module in modules]
    after = [(module, functools.partial(leave, name)) for name, module in modules]
    try:
        with hooked(after, before), ExitStack() as restored, torch.no_grad():
            # the fast path of nn.MultiheadAttention is a single fused operation
            restored.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            given = example.clone()  # a network may change its input
            context.dataflow.record([], [given])
            with _Tracer(context):
                out = output_tensors(model(given))
            if layers.difference(context.order()):
                with _Tracer(context):
                    out += _trained(model, example)
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{type(model).__name__} rejects an input of shape {tuple(example.shape)}: {message}"
        ) from error
    if not out:
        raise UsageError(f"{type(model).__name__} returns no tensor")
    context.ends = [context.dataflow.number(leaf) for leaf in out]
    for leaf in out:
        for labels in context.fields(leaf).values():
            context.labels.stay(labels, MODEL_OUTPUT)
    return context


def _trained(model: nn.Module, example: Tensor) -> list[Tensor]:
    """Return the outputs in training mode, in which more layers may run; an empty list if the pass fails.

    Dropout is off: its noise would look like a constant of the size of the channels.
    """
    model.train()
    try:
        with ExitStack() as restored:
            for name in DROPOUTS:
                restored.callback(setattr, nn.functional, name, getattr(nn.functional, name))
                setattr(nn.functional, name, lambda x, *_, **__: x)
            return output_tensors(model(torch.cat([example, example])))
    except Exception:  # training may need more than an input
        return []
    finally:
        model.eval()


def _label(model: nn.Module, context: Context) -> None:
    """Assign labels to all parameters and buffers; a tied tensor has its first name."""
    known = {name for name, module in model.named_modules() if isinstance(module, MADE_UP)}
    first = {id(tensor): name for name, tensor in reversed(named_tensors(model).items())}
    for name, tensor in named_tensors(model).items():
        owner, _, attribute = name.rpartition(".")
        if first[id(tensor)] != name or tensor.dim() == 0 or attribute.startswith(PREFIX):
            continue
        # a removed block has no positions; a token or a table is never cut along a dimension of size one
        least = 1 if owner in known else 2
        sizes = [(dim, size) for dim, size in enumerate(tensor.shape) if size >= least]
        context.give(tensor, {dim: context.labels.run(name, dim, size) for dim, size in sizes})
        if isinstance(tensor, nn.Parameter):
            context.storages.add(storage_of(tensor))
