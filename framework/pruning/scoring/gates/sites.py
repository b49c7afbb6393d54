"""Where the gate of each channel sits: behind the batch norm that follows a producer, else at its own output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers, tensor_name, unit_is_channel
from secateur.framework.network.norm_after import batch_norms_after
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import per_unit, producer_parameters


@dataclass(frozen=True)
class GateSites:
    """The gates of all channels; what a producer's units are called is the name of its weight."""

    model: nn.Module
    #: producer's weight -> the norm behind it, where there is one
    norms: dict[str, str]
    #: weights and biases of the producers without one
    bare: dict[str, nn.Parameter]
    #: where the units lie along each of these
    dims: dict[str, int]

    @classmethod
    def find(cls, model: nn.Module, groups: Groups, sample: Tensor) -> GateSites:
        """The places of the groups' producers; `sample` is a batch the model accepts."""
        produced = producer_parameters(model, groups)
        found = batch_norms_after(model, _own_layers(model, produced), sample)
        norms = {tensor_name(layer, "weight"): norm for layer, norm in found.items()}
        bare = {name: one for name, one in produced.items() if _weight_of(name) not in norms}
        dims = {part.tensor: part.dim for group in groups.values() for part in group.produced}
        return cls(model, norms, bare, dims)

    def weights(self) -> list[str]:
        """The weight of each producer."""
        alone = [name for name in self.bare if name == _weight_of(name) or _weight_of(name) not in self.bare]
        return [*self.norms, *alone]

    def scales(self) -> dict[str, tuple[str, nn.Parameter, nn.Parameter | None]]:
        """Producer's weight -> name, scale and shift of the norm behind it, if that has a scale."""
        found = {}
        for weight, name in self.norms.items():
            norm = self.model.get_submodule(name)
            if isinstance(norm.weight, nn.Parameter):
                found[weight] = (name, norm.weight, norm.bias if isinstance(norm.bias, nn.Parameter) else None)
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the gates' gradients can be told from: scales and shifts, and weights and biases without norm."""
        found = dict(self.bare)
        for name, scale, shift in self.scales().values():
            found[tensor_name(name, "weight")] = scale
            if shift is not None:
                found[tensor_name(name, "bias")] = shift
        return found

    def units(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per producer scale * g + shift * g of the norm, or sum w * g and b * g: `(units,)` each."""
        units = {}
        for weight, (name, scale, shift) in self.scales().items():
            units[weight] = scale.detach() * gradients[tensor_name(name, "weight")]
            if shift is not None:
                units[weight] = units[weight] + shift.detach() * gradients[tensor_name(name, "bias")]
        for name, parameter in self.bare.items():
            units[name] = per_unit(parameter.detach(), gradients[name], self.dims[name])
        return units

    def outputs(self) -> dict[str, str]:
        """Producer's weight -> the module whose output the gate multiplies, where there is one."""
        layers = {name: one for name, one in prunable_layers(self.model).items() if unit_is_channel(one)}
        names = {name: name.rpartition(".")[0] for name in self.bare if name.endswith("weight")}
        return {name: layer for name, layer in names.items() if layer in layers} | self.norms

    def silence(self, weight: str, samples: int) -> Tensor:
        """Zeros for every unit of a producer and every sample."""
        tensor = self.model.get_parameter(weight)
        return tensor.new_zeros(tensor.shape[self.dims[weight]], samples)


def _weight_of(tensor: str) -> str:
    """The weight beside a bias; other tensors are their own."""
    return tensor[: -len("bias")] + "weight" if tensor.endswith("bias") else tensor


def _own_layers(model: nn.Module, produced: Mapping[str, nn.Parameter]) -> list[str]:
    """Layers among the producers that no other layer shares its weight with."""
    layers = prunable_layers(model)
    users = [id(module.weight) for module in layers.values()]
    names = [name.rpartition(".")[0] for name in produced if name == _weight_of(name)]
    return [name for name in names if name in layers and users.count(id(layers[name].weight)) == 1]
