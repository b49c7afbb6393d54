"""Copies of a network that share its tensors, for trials that replace some of the tensors."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def twin_of(model: nn.Module) -> nn.Module:
    """Return a copy of the modules and their attributes that shares the model's parameters and buffers.

    Activations that modules have stored are shared too: they cannot be deep-copied.
    """
    stored = tree_leaves([vars(module) for module in model.modules()])
    activations = [value for value in stored if isinstance(value, Tensor) and not value.is_leaf]
    shared = [*model.parameters(), *model.buffers(), *activations]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def replace_tensors(model: nn.Module, new: Mapping[int, Tensor]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Replace parameters and buffers under all of their names; `new` maps the ids of the old ones to them.

    Return the dicts of the modules that had the old ones, with key and value.
    """
    places = [
        (holder, name, old)
        for module in model.modules()
        for holder in (vars(module)["_parameters"], vars(module)["_buffers"])
        for name, old in holder.items()
        if id(old) in new
    ]
    for holder, name, old in places:
        holder[name] = new[id(old)]
    return places
