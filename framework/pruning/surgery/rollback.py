"""Rollback of a network after a change that fails half-way, for instance in a user's adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of, set_lineage


@contextmanager
def all_or_nothing(
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer | None,
    mappings: Iterable[MutableMapping[str, Tensor]],
) -> Iterator[None]:
    """Restore tensors, attributes, lineages, mappings and the optimizer if the body raises an error.

    Tensors changed in place, and mutable values of attributes such as lists, are not restored.

    Args:
        modules: The networks that the body changes.
        optimizer: Their optimizer, or None.
        mappings: Mappings from tensor name to tensor that the body changes.
    """
    submodules = [module for network in modules for module in network.modules()]
    attributes = [(module, type(module), _attributes(module)) for module in submodules]
    lineages = [copy.deepcopy(lineage_of(module)) for module in modules]
    entries = [(mapping, dict(mapping)) for mapping in mappings]
    parameters = [list(group["params"]) for group in optimizer.param_groups] if optimizer is not None else []
    states = dict(optimizer.state) if optimizer is not None else {}
    try:
        yield
    except BaseException:
        for module, kind, values in attributes:
            _put_back(module, kind, values)
        for module, lineage in zip(modules, lineages, strict=True):
            set_lineage(module, lineage)
        for mapping, before in entries:
            for name, tensor in before.items():
                if mapping[name] is not tensor:
                    mapping[name] = tensor
        if optimizer is not None:
            for group, params in zip(optimizer.param_groups, parameters, strict=True):
                group["params"] = params
            optimizer.state.clear()
            optimizer.state.update(states)
        raise


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes, with copies of its dicts of parameters, buffers and submodules."""
    return {name: copy.copy(value) if type(value) is dict else value for name, value in vars(module).items()}


def _put_back(module: nn.Module, kind: type[nn.Module], values: dict[str, Any]) -> None:
    if type(module) is not kind:
        module.__class__ = kind
    now = dict(vars(module))
    vars(module).clear()
    for name, value in values.items():
        if type(value) is dict and type(now.get(name)) is dict:  # other objects may refer to the dict itself
            now[name].clear()
            now[name].update(value)
            vars(module)[name] = now[name]
        else:
            vars(module)[name] = value
