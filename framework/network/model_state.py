"""The state of a model that scoring must not change: saved before, compared and restored afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import shortened, tensor_name
from secateur.framework.network.lineage import LINEAGE, has_lineage, lineage_of, set_lineage
from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import same_bits

#: names of a module's dicts and sets: parameters, buffers, submodules and hooks
TABLES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set)))
_PLAIN = (bool, int, float, complex, str, tuple, type(None), torch.dtype, torch.device)
_ABSENT = object()
#: kinds of changes by attribute; the others of TABLES are hooks
_KINDS = {"_modules": "submodules", "training": "the mode (train or eval)"} | dict.fromkeys(
    ["_parameters", "_buffers", "_non_persistent_buffers_set"], "the tensors themselves"
)

#: kind of a change -> names of the tensors or modules
Changes = dict[str, list[str]]


class ModelState:
    """Snapshot of the parameters, buffers, gradients, flags, hooks, modes, attributes and submodules of a model.

    Values are compared bit by bit with copies: version counters do not include writes through `.data`, and include
    writes that restore a value. The copies take as much memory as the model and its gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = [ModuleState(name, module) for name, module in model.named_modules()]
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._tensors = [_TensorState(name, tensor) for name, tensor in tensors]
        self._lineage = copy.deepcopy(lineage_of(model)) if has_lineage(model) else None

    def restore(self, example: Tensor | None = None) -> Changes:
        """Restore the state, and return the changes since the snapshot.

        Attributes of third-party modules that a forward pass changes, such as a counter, are not restored. A copy
        of the model that runs `example` shows which these are.
        """
        changes: Changes = {}
        states: list[ModuleState | _TensorState] = [*self._modules, *self._tensors]
        for state in states:
            for kind in state.restore():
                changes.setdefault(kind, []).append(state.name)
        if self._lineage is not None and _facts(self._lineage) != _facts(lineage_of(self._model)):
            set_lineage(self._model, self._lineage)
        suspects = [(module, key) for module in self._modules for key in module.changed_attributes()]
        foreign = [module for module, _ in suspects if not module.is_torchs]
        by_forward = changed_by_forward(self._model, example) if foreign else set()
        for module, key in suspects:
            if module.is_torchs or by_forward is not None and (module.name, key) not in by_forward:
                module.put_back(key)
                changes.setdefault("attributes", []).append(tensor_name(module.name, key))
        if changes:
            Masks._changes += 1  # views of the masks collect the masked modules again
        return changes


def described(changes: Changes) -> str:
    """Return a one-line text, such as "values of 'conv1.weight', 'conv2.weight'; hooks of 'conv1'"."""
    unique = {kind: list(dict.fromkeys(names)) for kind, names in changes.items()}
    return "; ".join(f"{kind} of {shortened(names)}" if names else kind for kind, names in unique.items())


class ModuleState:
    """Snapshot of one module: its class and attributes, with copies of its dicts and sets."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self._module, self._class = name, module, type(module)
        self.is_torchs = self._class.__module__.startswith("torch.nn.modules")
        self._attributes = dict(vars(module))
        tables = {key: value for key, value in vars(module).items() if isinstance(value, (dict, set))}
        self._tables = {key: copy.copy(table) for key, table in tables.items()}

    def restore(self) -> Iterator[str]:
        """Restore everything but the attributes, and yield the kinds of changes."""
        if type(self._module) is not self._class:
            self._module.__class__ = self._class
            yield "the class"
        now = vars(self._module)
        for key in (*TABLES, "training"):
            before = self._attributes.get(key)
            if now.get(key) is not before or _entries(before) != _entries(self._tables.get(key, before)):
                self.put_back(key)
                yield _KINDS.get(key, "hooks")

    def roll_back(self) -> None:
        """Restore the class and all attributes."""
        self._module.__class__ = self._class
        vars(self._module).clear()
        for key in self._attributes:
            self.put_back(key)

    def changed_attributes(self) -> list[str]:
        """Return the names of attributes with another number, string or function."""
        before, now = self._attributes, vars(self._module)
        keys = {**before, **now}
        return [key for key in keys if not _same_setting(key, before.get(key, _ABSENT), now.get(key, _ABSENT))]

    def put_back(self, key: str) -> None:
        """Restore an attribute; a dict or set is the same object as before, since others may refer to it."""
        if key not in self._attributes:
            vars(self._module).pop(key)
            return
        vars(self._module)[key] = value = self._attributes[key]
        if key in self._tables:
            value.clear()
            value.update(self._tables[key])


def _entries(table: Any) -> Any:
    """Return what is compared of a table: of a dict the keys, in order, and the identities of the values."""
    return [(key, id(value)) for key, value in table.items()] if isinstance(table, dict) else table


class _TensorState:
    """Snapshot of one parameter or buffer: its memory, values, gradient, flags and hooks."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self._tensor = name, tensor
        self._memory, self._requires_grad = _Memory(tensor), tensor.requires_grad
        self._gradient = tensor.grad if tensor.is_leaf else None
        self._gradient_memory = None if self._gradient is None else _Memory(self._gradient)
        tables = {key: getattr(tensor, key) for key in ("_backward_hooks", "_post_accumulate_grad_hooks")}
        #: attribute of the tensor -> (its dict, a copy)
        self._hooks = {key: (table, copy.copy(table)) for key, table in tables.items()}

    @torch.no_grad()
    def restore(self) -> list[str]:
        """Restore memory and values first, since a gradient must match them, and return the kinds of changes."""
        kinds = ["values"] if self._memory.put_back() else []
        if self._tensor.requires_grad != self._requires_grad:
            if self._tensor.grad_fn is not None:  # a buffer with the result of an operation
                self._tensor.detach_()
            self._tensor.requires_grad_(self._requires_grad)
            kinds.append("requires_grad")
        for attribute, (table, before) in self._hooks.items():
            now = getattr(self._tensor, attribute)
            if now is table and table == before or not now and not before:
                continue
            if table is not None:
                table.clear()
                table.update(before)
            setattr(self._tensor, attribute, table)
            kinds.append("hooks")
        changed = self._gradient_memory is not None and self._gradient_memory.put_back()
        if (self._tensor.grad if self._tensor.is_leaf else None) is not self._gradient:
            self._tensor.grad, changed = self._gradient, True
        return [*kinds, "gradients"] if changed else kinds


class _Memory:
    """Snapshot of the memory and the values of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._memory = tensor, tensor.detach()
        self._values = self._memory.clone()

    def put_back(self) -> bool:
        """Restore memory and values, and return whether they had changed."""
        rebound = _view(self._tensor) != _view(self._memory)
        written = not same_bits(self._memory, self._values)
        if rebound:
            self._tensor.data = self._memory
        if written:
            self._memory.copy_(self._values)
        return rebound or written


def _view(tensor: Tensor) -> tuple[Any, ...]:
    """Return the facts by which a view of the memory differs from another."""
    place = (tensor.stride(), tensor.data_ptr()) if tensor.layout is torch.strided else ()
    return tensor.shape, tensor.dtype, tensor.device, *place


def _same_setting(key: str, one: object, other: object) -> bool:
    """Whether an attribute is unchanged, or neither value is a number, string or function to compute with."""
    if one is other or key in (LINEAGE, "training"):
        return True
    if isinstance(one, _PLAIN) and isinstance(other, _PLAIN):
        return type(one) is type(other) and repr(one) == repr(other)
    return not any(isinstance(value, _PLAIN) or callable(value) for value in (one, other))


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
            before = [ModuleState(name, module) for name, module in twin.named_modules()]
            with torch.no_grad():
                twin(torch.cat([example[:1]] * 2))
            changed |= {(state.name, key) for state in before for key in state.changed_attributes()}
    except Exception:  # the user's network may raise anything
        return None
    return changed
