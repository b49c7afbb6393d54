"""Rollback of a network after a change that fails half-way, for instance in a user's adapter."""

import copy
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of, set_lineage
from secateur.framework.network.model_state import ModuleState


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
    states = [ModuleState("", module) for network in modules for module in network.modules()]
    lineages = [copy.deepcopy(lineage_of(module)) for module in modules]
    entries = [(mapping, dict(mapping)) for mapping in mappings]
    parameters = [list(group["params"]) for group in optimizer.param_groups] if optimizer is not None else []
    of_optimizer = dict(optimizer.state) if optimizer is not None else {}
    try:
        yield
    except BaseException:
        for state in states:
            state.roll_back()
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
            optimizer.state.update(of_optimizer)
        raise
