"""The state of a model that scoring must not change: saved before, compared and restored afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import named_modules, tensor_name
from secateur.framework.network.lineage import has_lineage, lineage_of, set_lineage
from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import same_bits

#: names of a module's dicts and sets: parameters, buffers, submodules and hooks
TABLES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_LINEAGE = "_secateur_lineage"
_PLAIN = (bool, int, float, complex, str, tuple, type(None), torch.dtype, torch.device)
_ABSENT = object()
#: number of tensors or modules that a message names; of the others it gives the number
SHOWN = 3

#: kind of a change -> names of the tensors or modules
Changes = dict[str, list[str]]


class ModelState:
    """Snapshot of the parameters, buffers, gradients, flags, hooks, modes, attributes and submodules of a model.

    Values are compared bit by bit with copies: version counters do not include writes through `.data`, and include
    writes that restore a value. The copies take as much memory as the model and its gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = [_ModuleState(name, module) for name, module in named_modules(model).items()]
        self._tensors = list(_tensor_states(model))
        self._lineage = copy.deepcopy(lineage_of(model)) if has_lineage(model) else None

    def restore(self, example: Tensor | None = None) -> Changes:
        """Restore the state, and return the changes since the snapshot.

        Attributes of third-party modules that a forward pass changes, such as a counter, are not restored. A copy
        of the model that runs `example` shows which these are.
        """
        changes: Changes = {}
        suspects = []
        for module in self._modules:
            module.restore(changes)
            suspects += [(module, attribute) for attribute in module.changed_attributes()]
        for tensor in self._tensors:
            tensor.restore(changes)
        if self._lineage is not None and _facts(self._lineage) != _facts(lineage_of(self._model)):
            set_lineage(self._model, self._lineage)
        foreign = [suspect for suspect in suspects if not suspect[0].is_torchs]
        by_forward = changed_by_forward(self._model, example) if foreign else set()
        for module, attribute in suspects:
            if module.is_torchs or by_forward is not None and (module.name, attribute) not in by_forward:
                module.put_back(attribute)
                changes.setdefault("attributes", []).append(tensor_name(module.name, attribute))
        if changes:
            Masks._changes += 1  # views of the masks collect the masked modules again
        return changes


def described(changes: Changes) -> str:
    """Return a one-line text, such as "values of 'conv1.weight', 'conv2.weight'; hooks of 'conv1'"."""
    parts = []
    for kind, names in changes.items():
        unique = list(dict.fromkeys(names))
        shown = ", ".join(repr(name) if name else "the model" for name in unique[:SHOWN])
        more = f" and {len(unique) - SHOWN} more" if len(unique) > SHOWN else ""
        parts.append(f"{kind} of {shown}{more}" if shown else kind)
    return "; ".join(parts)


class _ModuleState:
    """Snapshot of one module: its class, mode, dicts and attributes."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self._module, self._class = name, module, type(module)
        values = vars(module)
        self._tables = {key: (values[key], copy.copy(values[key])) for key in TABLES if key in values}
        self._attributes = {key: value for key, value in values.items() if _is_setting(key, value)}

    @property
    def is_torchs(self) -> bool:
        return self._class.__module__.startswith("torch.nn.modules")

    def restore(self, changes: Changes) -> None:
        """Restore everything but the attributes."""
        if type(self._module) is not self._class:
            self._module.__class__ = self._class
            changes.setdefault("the class", []).append(self.name)
        for key, (table, before) in self._tables.items():
            now = vars(self._module).get(key)
            if now is table and _same_table(table, before):
                continue
            table.clear()
            table.update(before)
            vars(self._module)[key] = table
            changes.setdefault(_kind_of_table(key), []).append(self.name)
        if self._module.training != self._attributes["training"]:
            self._module.training = self._attributes["training"]
            changes.setdefault("the mode (train or eval)", []).append(self.name)

    def changed_attributes(self) -> list[str]:
        now = {key: value for key, value in vars(self._module).items() if _is_setting(key, value)}
        return [
            key
            for key in {**self._attributes, **now}
            if not _same_setting(self._attributes.get(key, _ABSENT), now.get(key, _ABSENT))
        ]

    def put_back(self, attribute: str) -> None:
        if attribute in self._attributes:
            vars(self._module)[attribute] = self._attributes[attribute]
        else:
            vars(self._module).pop(attribute)


@dataclass
class _TensorState:
    """Snapshot of one parameter or buffer: its memory, values, gradient, flags and hooks."""

    name: str
    tensor: Tensor
    memory: Tensor
    values: Tensor
    requires_grad: bool
    gradient: Tensor | None
    #: memory and values of the gradient
    gradient_copies: tuple[Tensor, Tensor] | None
    #: attribute of the tensor -> (its dict, a copy)
    hooks: dict[str, tuple[Any, Any]]

    @torch.no_grad()
    def restore(self, changes: Changes) -> None:
        """Restore memory and values first, since a gradient must match them."""
        if _put_back(self.tensor, self.memory, self.values):
            changes.setdefault("values", []).append(self.name)
        if self.tensor.requires_grad != self.requires_grad:
            if self.tensor.grad_fn is not None:  # a buffer with the result of an operation
                self.tensor.detach_()
            self.tensor.requires_grad_(self.requires_grad)
            changes.setdefault("requires_grad", []).append(self.name)
        for attribute, (table, before) in self.hooks.items():
            now = getattr(self.tensor, attribute)
            if now is table and table == before or not now and not before:
                continue
            if table is not None:
                table.clear()
                table.update(before)
            setattr(self.tensor, attribute, table)
            changes.setdefault("hooks", []).append(self.name)
        self._restore_gradient(changes)

    def _restore_gradient(self, changes: Changes) -> None:
        before, copies = self.gradient, self.gradient_copies
        now = self.tensor.grad if self.tensor.is_leaf else None
        changed = before is not None and copies is not None and _put_back(before, *copies)
        if now is not before:
            self.tensor.grad = before
        if changed or now is not before:
            changes.setdefault("gradients", []).append(self.name)


def _put_back(tensor: Tensor, memory: Tensor, values: Tensor) -> bool:
    """Restore the memory and values of a tensor, and return whether they had changed."""
    rebound, written = _rebound(tensor, memory), not same_bits(memory, values)
    if rebound:
        tensor.data = memory
    if written:
        memory.copy_(values)
    return rebound or written


def _tensor_states(model: nn.Module) -> Iterator[_TensorState]:
    seen: set[int] = set()
    for name, module in named_modules(model).items():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            gradient = tensor.grad if tensor.is_leaf else None
            tables = {key: getattr(tensor, key) for key in ("_backward_hooks", "_post_accumulate_grad_hooks")}
            memory = tensor.detach()
            yield _TensorState(
                tensor_name(name, attribute), tensor, memory, memory.clone(), tensor.requires_grad, gradient,
                None if gradient is None else (gradient.detach(), gradient.detach().clone()),
                {key: (table, copy.copy(table)) for key, table in tables.items()},
            )  # fmt: skip


def _rebound(tensor: Tensor, memory: Tensor) -> bool:
    """Whether the tensor has other memory, or another view of it, than before."""
    same = tensor.shape == memory.shape and tensor.dtype == memory.dtype and tensor.device == memory.device
    if not same or tensor.layout is not torch.strided:
        return not same
    return tensor.stride() != memory.stride() or tensor.data_ptr() != memory.data_ptr()


def _same_table(table: Any, before: Any) -> bool:
    if isinstance(table, MutableMapping):
        return list(table) == list(before) and all(table[key] is before[key] for key in before)
    return bool(table == before)


def _kind_of_table(key: str) -> str:
    if "hook" in key:
        return "hooks"
    return "submodules" if key == "_modules" else "the tensors themselves"


def _is_setting(key: str, value: object) -> bool:
    """Whether an attribute is a number, string or function that a module may compute with."""
    return key == "training" or key != _LINEAGE and (isinstance(value, _PLAIN) or callable(value))


def _same_setting(one: object, other: object) -> bool:
    return one is other or isinstance(one, _PLAIN) and type(one) is type(other) and repr(one) == repr(other)


def _facts(lineage: Any) -> tuple[Any, ...]:
    kept = {key: tuple(index.tolist()) for key, index in lineage.kept.items()}
    return lineage.name, lineage.dense, kept


def changed_by_forward(model: nn.Module, example: Tensor | None) -> set[tuple[str, str]] | None:
    """Return the (module, attribute) pairs that a forward pass changes, in eval or training mode.

    None if this is unknown, because there is no example or a copy of the model does not run.
    """
    if example is None:
        return None
    changed: set[tuple[str, str]] = set()
    try:
        for training in (False, True):
            twin = copy.deepcopy(model).train(training)
            before = [_ModuleState(name, module) for name, module in named_modules(twin).items()]
            with torch.no_grad():
                twin(torch.cat([example[:1]] * 2))
            changed |= {(state.name, key) for state in before for key in state.changed_attributes()}
    except Exception:  # the user's network may raise anything
        return None
    return changed
