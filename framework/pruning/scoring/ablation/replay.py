"""A traced forward pass, parts of which can be repeated for many changed values at once."""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

#: operations that treat samples independently -> index of the argument with the samples along its first dimension
SAMPLEWISE = {
    "convolution": 0,
    "native_batch_norm": 0,
    "_native_batch_norm_legit_no_training": 0,
    "cudnn_batch_norm": 0,
    "miopen_batch_norm": 0,
    "max_pool2d_with_indices": 0,
    "avg_pool2d": 0,
    "_adaptive_avg_pool2d": 0,
    "mm": 0,
    "addmm": 1,
}
VIEW_FUNCTIONS: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.reshape,
    torch.ops.aten._unsafe_view.default: torch.reshape,
}
#: replacements of nodes' values, one per change: `(changes, ...)`
Stacked = dict[Node, Any]
Special = Mapping[Node, Callable[[Stacked], Tensor]]


class Replay:
    """The operations of one forward pass and all their results, with parameters accessible by name.

    Raises any exception of tracing, for example for a network with data-dependent control flow.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        named = {name: parameter.detach() for name, parameter in model.named_parameters()}
        specs = []

        def forward(parameters: list[Tensor], given: Tensor) -> list[Any]:
            out = functional_call(model, dict(zip(named, parameters, strict=True)), (given,))
            leaves, spec = tree_flatten(out)
            specs.append(spec)
            return leaves

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused kernels cannot be vmapped
            self.module = make_fx(functionalize(forward, remove="mutations"))(
                list(named.values()), _laid_out(inputs)
            )
        self.nodes: list[Node] = list(self.module.graph.nodes)
        self.outcome: Any = self.nodes[-1].args[0]
        self.spec = specs[-1]
        placeholders = [node for node in self.nodes if node.op == "placeholder"]
        self.parameters = dict(zip(named, placeholders[:-1], strict=True))
        self.given = placeholders[-1]
        self.values: dict[Node, Any] = dict(zip(placeholders, named.values(), strict=False))
        self.load(inputs)

    @torch.no_grad()
    def load(self, inputs: Tensor) -> Replay:
        """Repeat the whole pass on other inputs of the same shape; return self."""
        self.values[self.given] = _laid_out(inputs)
        for node in self.nodes:
            if node.op == "get_attr":
                self.values[node] = operator.attrgetter(str(node.target))(self.module)
            elif node.op == "call_function":
                args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
                self.values[node] = self._target(node)(*args, **kwargs)
        return self

    @property
    def outputs(self) -> Any:
        """The outputs of the network."""
        return tree_unflatten(list(map_arg(self.outcome, self.values.__getitem__)), self.spec)

    def users_of(self, parameter: str) -> list[Node]:
        """Return the operations that take a parameter or its transpose."""
        users = []
        for node in self.parameters[parameter].users:
            users += list(node.users) if self.is_transposed(node, parameter) else [node]
        return users

    def is_transposed(self, node: Any, parameter: str) -> bool:
        """Whether a node is the transpose of a parameter."""
        packet = getattr(getattr(node, "target", None), "overloadpacket", None)
        return packet is torch.ops.aten.t and node.args[0] is self.parameters[parameter]

    def after(self, starts: Iterable[Node]) -> list[Node]:
        """Return the operations that depend on these nodes, in execution order, the nodes included."""
        reached = set(starts)
        for node in self.nodes:  # in the order of the pass
            if node.op == "call_function" and any(one in reached for one in node.all_input_nodes):
                reached.add(node)
        return [node for node in self.nodes if node in reached and node.op == "call_function"]

    def run(self, order: Sequence[Node], changes: int, special: Special) -> Any:
        """Return the outputs for many changed values at once, `(changes, ...)` each.

        Args:
            order: The operations to repeat, see `after`.
            changes: Number of changes.
            special: Functions of the values replaced so far that compute the results of some operations.
        """
        stacked: Stacked = {}
        last = {one: node for node in order for one in node.all_input_nodes}
        kept = set(tree_leaves(map_arg(self.outcome, lambda node: node)))
        for node in order:
            if node in special:
                stacked[node] = special[node](stacked)
            elif any(one in stacked for one in node.all_input_nodes):
                stacked[node] = self._apply(node, stacked, changes)
            for one in node.all_input_nodes:
                if last.get(one) is node and one not in kept:
                    stacked.pop(one, None)

        def final(node: Node) -> Any:
            return (
                stacked[node] if node in stacked else self.values[node].expand(changes, *self.values[node].shape)
            )

        return tree_unflatten(list(map_arg(self.outcome, final)), self.spec)

    def _apply(self, node: Node, stacked: Stacked, changes: int) -> Any:
        if node.target is operator.getitem:
            return stacked[node.args[0]][node.args[1]]  # type: ignore[index]
        name, target = node.target.overloadpacket.__name__, self._target(node)  # type: ignore[union-attr]
        changed = {one: stacked[one] for one in node.all_input_nodes if one in stacked}
        if name == "as_strided_" and _only_restrides(node):
            return stacked[node.args[0]]  # type: ignore[index]

        def arguments(replaced: Stacked) -> Any:
            return map_arg((node.args, node.kwargs), ChainMap(replaced, self.values).__getitem__)

        def single(*values: Any) -> Any:
            args, kwargs = arguments(dict(zip(changed, values, strict=True)))
            return target(*args, **kwargs)

        place = SAMPLEWISE.get(name)
        if place is not None and list(changed) == [node.args[place]]:
            args, kwargs = arguments(changed)
            return _folded(target, args, kwargs, place, changes)
        return torch.vmap(single)(*changed.values())

    @staticmethod
    def _target(node: Node) -> Any:
        """Return the operation; views become reshapes, since replaced values may have another memory layout."""
        return VIEW_FUNCTIONS.get(node.target, node.target)


def _laid_out(inputs: Tensor) -> Tensor:
    """Convert images to channels-last, which is faster for convolutions of many changes."""
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _only_restrides(node: Node) -> bool:
    """Whether only strides of dimensions of size 1 change, as in the channels-last results of global pooling."""
    size, stride = list(node.args[1]), list(node.args[2])  # type: ignore[arg-type]
    plain = torch.empty(size, device="meta").stride()
    return all(length == 1 or one == other for length, one, other in zip(size, stride, plain, strict=True))


def _folded(target: Any, args: Any, kwargs: Any, place: int, changes: int) -> Any:
    """Apply an operation to changes and samples flattened into one batch dimension."""
    given = args[place]
    samples = given.shape[1]
    args = [*args[:place], given.flatten(0, 1), *args[place + 1 :]]

    def unfold(value: Any) -> Any:
        fits = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == changes * samples
        return value.unflatten(0, (changes, samples)) if fits else value

    return tree_map(unfold, target(*args, **kwargs))
