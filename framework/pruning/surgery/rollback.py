"""Putting a network back as it was when a change of it fails half-way, for instance in a user's adapter."""

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
    """Inside, tensors may be replaced and attributes set: after an error all are the ones of before.

    Tensors changed in place, and lists and the like inside attributes, are not put back.
    """
    attributes = [(module, type(module), _attributes(module)) for one in modules for module in one.modules()]
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
            for group, before_it in zip(optimizer.param_groups, parameters, strict=True):
                group["params"] = before_it
            optimizer.state.clear()
            optimizer.state.update(states)
        raise


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes; its tables of parameters, buffers and parts as copies."""
    return {name: copy.copy(value) if type(value) is dict else value for name, value in vars(module).items()}


def _put_back(module: nn.Module, kind: type[nn.Module], values: dict[str, Any]) -> None:
    if type(module) is not kind:
        module.__class__ = kind
    now = dict(vars(module))
    vars(module).clear()
    for name, value in values.items():
        if type(value) is dict and type(now.get(name)) is dict:  # others may hold the table itself
            now[name].clear()
            now[name].update(value)
            vars(module)[name] = now[name]
        else:
            vars(module)[name] = value
