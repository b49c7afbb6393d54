"""The network's inputs as units that are ranked beside its channels: they are masked, never cut."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers, prunable_weights, tensor_name
from secateur.framework.network.masks import Masks
from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import preserved_state
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, float_scores
from secateur.framework.pruning.scoring.input_features import input_columns, over_inputs
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

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...], *others: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and (name == first or first in read):
            read.setdefault(name, inputs[0])

    hooks = [(module, partial(note, name)) for name, module in prunable_layers(model).items()]
    with preserved_state(model), torch.no_grad(), hooked(hooks):
        model(example_input)
    readers = [name for name, inputs in read.items() if inputs.data_ptr() == read[first].data_ptr()]
    for name in readers:
        if read[name].shape != read[first].shape or _inputs(model, name) != _inputs(model, first):
            raise UsageError(
                f"rank_inputs: {first} and {name} read the images in different shapes, so that their inputs "
                "cannot be ranked",
                argument="rank_inputs",
            )
    return readers or [first]


def _inputs(model: nn.Module, layer: str) -> int:
    module: Any = model.get_submodule(layer)
    return len(input_columns(module, torch.empty_like(module.weight, device="meta")))


def readers_of_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Return prunable weight -> its layer, the first one if several share it."""
    layers = {id(module.weight): module for module in reversed(prunable_layers(model).values())}
    return {name: layers[id(weight)] for name, weight in prunable_weights(model).items()}


class NetworkInputs:
    """The inputs of a network, read by one or more layers.

    Args:
        model: The network.
        readers: Names of the layers that read the inputs, see `input_readers`.
    """

    def __init__(self, model: nn.Module, readers: list[str]) -> None:
        self.readers = readers
        self._model = model

    def scores(self, criterion: Criterion, batches: Iterable[Batch], loss: LossFunction) -> Tensor:
        """Return one score per input, `(inputs,)`, the sum over the layers that read it.

        Raises UsageError if the criterion cannot score inputs or its scores are invalid.
        """
        who, alive, parts = f"{criterion.name}.input_scores", self.alive(), []
        with held_to_contract(criterion, "input_scores", self._model):
            for layer in self.readers:
                scores = criterion.input_scores(self._model, batches, loss, layer)
                parts.append(float_scores(f"{who}: the result", scores, tuple(alive.shape)).to(alive.device))
                if parts[-1].isnan().any():
                    raise UsageError(f"{who} contains NaN")
        return torch.stack(parts).sum(0)

    def alive(self) -> Tensor:
        """Return the mask of inputs that are not masked in every one of the layers: bool `(inputs,)`."""
        masks, living = Masks(self._model), []
        for layer in self.readers:
            module: Any = self._model.get_submodule(layer)
            held = masks.get(tensor_name(layer, "weight"), torch.ones_like(module.weight))
            living.append(input_columns(module, held != 0).any(1))
        return torch.stack(living).any(0)

    def mask(self, left: Tensor) -> int:
        """Mask the inputs that are False in `left`; return the number of newly masked ones."""
        newly = int((self.alive() & ~left).sum())
        if newly:
            of = {name: over_inputs(self._model.get_submodule(name), left) for name in self.readers}
            Masks(self._model).hold({tensor_name(name, "weight"): mask for name, mask in of.items()})
        return newly
