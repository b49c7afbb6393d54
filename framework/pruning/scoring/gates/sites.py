"""Positions of the channel gates: after the batch norm that follows a producer, else at its own output."""

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
    """The gates of all channels; each producer is identified by the name of its weight.

    Attributes:
        model: The network.
        norms: Producer's weight -> name of the norm after it, for producers with a norm.
        bare: Weights and biases of the producers without a norm.
        dims: Producer's tensor -> dimension of its output units.
    """

    model: nn.Module
    norms: dict[str, str]
    bare: dict[str, nn.Parameter]
    dims: dict[str, int]

    @classmethod
    def find(cls, model: nn.Module, groups: Groups, sample: Tensor) -> GateSites:
        """Find the gates of the groups' producers; `sample` is a batch that the model accepts."""
        produced = producer_parameters(model, groups)
        following = batch_norms_after(model, _own_layers(model, produced), sample)
        norms = {tensor_name(layer, "weight"): norm for layer, norm in following.items()}
        bare = {name: parameter for name, parameter in produced.items() if _weight_of(name) not in norms}
        dims = {part.tensor: part.dim for group in groups.values() for part in group.produced}
        return cls(model, norms, bare, dims)

    def weights(self) -> list[str]:
        """Return the weight of each producer."""
        alone = [name for name in self.bare if name == _weight_of(name) or _weight_of(name) not in self.bare]
        return [*self.norms, *alone]

    def scales(self) -> dict[str, tuple[str, nn.Parameter, nn.Parameter | None]]:
        """Return producer's weight -> name, scale and shift of the norm after it, for norms with a scale."""
        scales = {}
        for weight, name in self.norms.items():
            norm = self.model.get_submodule(name)
            if isinstance(norm.weight, nn.Parameter):
                scales[weight] = (name, norm.weight, norm.bias if isinstance(norm.bias, nn.Parameter) else None)
        return scales

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that determine the gates' gradients: scales and shifts, or weights and biases."""
        parameters = dict(self.bare)
        for name, scale, shift in self.scales().values():
            parameters[tensor_name(name, "weight")] = scale
            if shift is not None:
                parameters[tensor_name(name, "bias")] = shift
        return parameters

    def units(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scale * g + shift * g of the norm, or sum w * g and b * g, of each producer: `(units,)` each."""
        units = {}
        for weight, (name, scale, shift) in self.scales().items():
            units[weight] = scale.detach() * gradients[tensor_name(name, "weight")]
            if shift is not None:
                units[weight] = units[weight] + shift.detach() * gradients[tensor_name(name, "bias")]
        for name, parameter in self.bare.items():
            units[name] = per_unit(parameter.detach(), gradients[name], self.dims[name])
        return units

    def outputs(self) -> dict[str, str]:
        """Return producer's weight -> module whose output the gate multiplies, for gates on module outputs."""
        layers = {name: layer for name, layer in prunable_layers(self.model).items() if unit_is_channel(layer)}
        names = {name: name.rpartition(".")[0] for name in self.bare if name.endswith("weight")}
        return {name: layer for name, layer in names.items() if layer in layers} | self.norms

    def silence(self, weight: str, samples: int) -> Tensor:
        """Return zeros for every unit of a producer and every sample."""
        tensor = self.model.get_parameter(weight)
        return tensor.new_zeros(tensor.shape[self.dims[weight]], samples)


def _weight_of(tensor: str) -> str:
    """Return the name of the weight that belongs to a bias; other names are returned unchanged."""
    return tensor[: -len("bias")] + "weight" if tensor.endswith("bias") else tensor


def _own_layers(model: nn.Module, produced: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the producers that are layers and do not share their weight with another layer."""
    layers = prunable_layers(model)
    users = [id(module.weight) for module in layers.values()]
    names = [name.rpartition(".")[0] for name in produced if name == _weight_of(name)]
    return [name for name in names if name in layers and users.count(id(layers[name].weight)) == 1]
