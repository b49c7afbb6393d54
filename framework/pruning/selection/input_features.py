"""Pruning of the first layer's inputs with `--outer_layer_pruning`: they are masked, never cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers, prunable_weights, tensor_name
from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import preserved_state
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.criterion import Criterion, float_scores
from secateur.framework.pruning.scoring.input_features import input_columns, over_inputs
from secateur.framework.pruning.selection.select import lowest, select
from secateur.utils.errors import UsageError


def first_layer(groups: Groups) -> str:
    """Return the name of the first layer in forward order."""
    return next(iter(groups.values())).producers[0]


def input_readers(model: nn.Module, example_input: Tensor, groups: Groups) -> list[str]:
    """Return the layers that read the same tensor as the first layer: the images, or their preprocessed form.

    Raises UsageError if one of them reads it in another shape, so that its columns do not match the first layer's.
    """
    first = first_layer(groups)
    read: dict[str, Tensor] = {}  # held, so that their memory is not reused

    def note(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and (name == first or first in read):
            read.setdefault(name, inputs[0])

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, module in prunable_layers(model).items()
    ]
    try:
        with preserved_state(model), torch.no_grad():
            model(example_input)
    finally:
        for hook in hooks:
            hook.remove()
    readers = [name for name, inputs in read.items() if inputs.data_ptr() == read[first].data_ptr()]
    for name in readers:
        if read[name].shape != read[first].shape or _inputs(model, name) != _inputs(model, first):
            raise UsageError(
                f"--outer_layer_pruning: {first} and {name} read the images in different shapes, so "
                "that their inputs cannot be ranked"
            )
    return readers or [first]


def _inputs(model: nn.Module, layer: str) -> int:
    module: Any = model.get_submodule(layer)
    return len(input_columns(module, torch.empty_like(module.weight, device="meta")))


def readers_of_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Return prunable weight -> its layer, the first one if several share it."""
    names: dict[int, nn.Module] = {}
    for module in prunable_layers(model).values():
        names.setdefault(id(module.weight), module)
    return {name: names[id(weight)] for name, weight in prunable_weights(model).items()}


def living_inputs(model: nn.Module, layers: Sequence[str]) -> Tensor:
    """Return the mask of inputs that are not masked in every one of the layers: bool `(inputs,)`."""
    masks, living = Masks(model), []
    for layer in layers:
        module = model.get_submodule(layer)
        weight: Any = module.weight
        held = masks.get(tensor_name(layer, "weight"), torch.ones_like(weight))
        living.append(input_columns(module, held != 0).any(1))
    return torch.stack(living).any(0)


def keep_inputs(
    scores: Tensor,
    alive: Tensor,
    gone_channels: Sequence[Tensor],
    *,
    scope: str,
    target: float,
    threshold: float | None,
) -> Tensor:
    """Return the mask of inputs to keep, bool `(inputs,)`; the best remaining input is always kept.

    With scope "global" an input is pruned if its score is below the highest score of the channels pruned in this
    step (`gone_channels`: the scores of the pruned channels). With another scope the inputs are ranked separately,
    and the share `target` of them is pruned. With a threshold, inputs with scores at or below it are pruned.
    """
    alive = alive.to(scores.device)
    if threshold is not None:
        keep = scores > threshold
    elif scope == "global":
        best = max((float(part.max()) for part in gone_channels if part.numel()), default=-torch.inf)
        keep = ~(scores < best)
    else:
        keep = select({"inputs": scores}, target, floor=1, current={"inputs": alive})["inputs"]
    ranked = torch.where(alive, scores, -torch.inf)
    return (keep & alive) | (alive & ~lowest(ranked, len(ranked) - 1))


def check_input_scores(scores: Tensor, alive: Tensor, criterion: Criterion) -> Tensor:
    """Return the scores of inputs as float32 on the model's device; raise UsageError if they are invalid."""
    who = f"{criterion.name}.input_scores"
    checked = float_scores(f"{who}: the result", scores, tuple(alive.shape)).to(alive.device)
    if checked.isnan().any():
        raise UsageError(f"{who} contains NaN")
    return checked


def mask_inputs(model: nn.Module, layers: Sequence[str], left: Tensor | None) -> int:
    """Mask the columns of the inputs that are False in `left`; return the number of newly masked inputs."""
    if left is None:
        return 0
    newly = int((living_inputs(model, layers) & ~left).sum())
    if newly:
        Masks(model).hold(
            {tensor_name(layer, "weight"): over_inputs(model.get_submodule(layer), left) for layer in layers}
        )
    return newly


def gone_scores(scores: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the scores of the channels that `keep` prunes, per group."""
    return [scores[name][~mask.to(scores[name].device)] for name, mask in keep.items()]
