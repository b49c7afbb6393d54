"""The inputs of the first layer under `--outer_layer_pruning`: ranked beside the channels, masked, never cut."""

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
    """Name of the layer that the network's input meets first, in forward order."""
    return next(iter(groups.values())).producers[0]


def input_readers(model: nn.Module, example_input: Tensor, groups: Groups) -> list[str]:
    """The layers that read what the first one reads: the images, as they are or as the network prepares them.

    UsageError where one of them reads them in another shape, so that its columns are no inputs of the first.
    """
    first = first_layer(groups)
    read: dict[str, Tensor] = {}  # held, so that no other tensor comes to lie where they were

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
    found = [name for name, one in read.items() if one.data_ptr() == read[first].data_ptr()]
    for name in found:
        if read[name].shape != read[first].shape or _inputs(model, name) != _inputs(model, first):
            raise UsageError(
                f"--outer_layer_pruning: {first} and {name} read the images in two ways, inputs cannot be ranked"
            )
    return found or [first]


def _inputs(model: nn.Module, layer: str) -> int:
    module: Any = model.get_submodule(layer)
    return len(input_columns(module, torch.empty_like(module.weight, device="meta")))


def readers_of_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Prunable weight -> its layer, the first one where several share it."""
    names: dict[int, nn.Module] = {}
    for module in prunable_layers(model).values():
        names.setdefault(id(module.weight), module)
    return {name: names[id(weight)] for name, weight in prunable_weights(model).items()}


def living_inputs(model: nn.Module, layers: Sequence[str]) -> Tensor:
    """Inputs that no mask holds at zero in every one of the layers: bool `(inputs,)`."""
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
    """Inputs to keep, bool `(inputs,)`; the best of the living ones always stays.

    With scope "global" an input goes when its score is below that of the best channel that went in this step
    (`gone_channels`: the scores of those that went). With another scope nothing competes with the inputs, and the
    share `target` of them goes. With a threshold those at or below it go.
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
    """The scores of inputs as float32 on the model's device, or a UsageError that says what is wrong with them."""
    who = f"{type(criterion).__name__}.input_scores"
    checked = float_scores(f"{who}: the result", scores, tuple(alive.shape)).to(alive.device)
    if checked.isnan().any():
        raise UsageError(f"{who} contains NaN")
    return checked


def mask_inputs(model: nn.Module, layers: Sequence[str], left: Tensor | None) -> int:
    """Hold the columns of the inputs that are off in `left` at zero; how many of them were not so before."""
    if left is None:
        return 0
    newly = int((living_inputs(model, layers) & ~left).sum())
    if newly:
        Masks(model).hold(
            {tensor_name(layer, "weight"): over_inputs(model.get_submodule(layer), left) for layer in layers}
        )
    return newly


def gone_scores(scores: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> list[Tensor]:
    """The scores of the channels that are off in `keep`, per group."""
    return [scores[name][~mask.to(scores[name].device)] for name, mask in keep.items()]
